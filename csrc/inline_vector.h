// A vector whose first elements need no memory of their own: a replay makes one for every op.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <type_traits>
#include <vector>

namespace bertfast {

// Up to `most` elements in place, more on the heap.
template <class T, size_t most>
class InlineVector {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  InlineVector() = default;
  InlineVector(std::initializer_list<T> values) {
    for (const T& value : values) push_back(value);
  }

  void push_back(const T& value) {
    if (size_ == most) many_.assign(few_, few_ + most);
    if (size_ < most)
      few_[size_] = value;
    else
      many_.push_back(value);
    ++size_;
  }

  size_t size() const { return size_; }
  T* begin() { return size_ <= most ? few_ : many_.data(); }
  T* end() { return begin() + size_; }
  const T* begin() const { return size_ <= most ? few_ : many_.data(); }
  const T* end() const { return begin() + size_; }
  const T& operator[](size_t i) const { return begin()[i]; }

 private:
  T few_[most];
  size_t size_ = 0;
  std::vector<T> many_;
};

}  // namespace bertfast
