#include "slot_table.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>

#include "../check.h"

namespace bertfast {
namespace {

constexpr int64_t most_labels = int64_t{1} << 40;     // their product must not overflow
constexpr char ended = 0, is_parent = 1, reused = 2;  // states of a slot in reorder

void broken(const std::string& what) { throw std::logic_error("SlotTable: " + what); }

}  // namespace

SlotTable::SlotTable(int64_t slots, int64_t positions) : positions_(positions) {
  BF_CHECK(slots >= 0, "slots: got ", slots, ", expected 0 or more");
  BF_CHECK(positions >= 0, "positions: got ", positions, ", expected 0 or more");
  BF_CHECK(positions == 0 || slots <= most_labels / positions, "slots: got ", slots, " of ", positions, " positions, expected at most ",
           most_labels, " positions together");
  lengths_.assign(static_cast<size_t>(slots), 0);
  labels_.assign(static_cast<size_t>(slots) * static_cast<size_t>(positions), 0);
  for (int64_t slot = slots - 1; slot >= 0; --slot) free_.push_back(slot);
  running_.reserve(lengths_.size());
}

std::vector<int64_t> SlotTable::lengths() const {
  std::vector<int64_t> found;
  for (const int64_t slot : running_) found.push_back(lengths_[static_cast<size_t>(slot)]);
  return found;
}

void SlotTable::fill(int64_t slot, int64_t count) {
  int64_t& length = lengths_[static_cast<size_t>(slot)];
  const auto start = labels_.begin() + slot * positions_ + length;
  std::iota(start, start + count, last_label_ + 1);
  last_label_ += count;
  length += count;
}

std::vector<int64_t> SlotTable::admit(const std::vector<int64_t>& lengths) {
  BF_CHECK(lengths.size() <= free_.size(), "admit: ", lengths.size(), " sequences came, expected at most ", free_.size(),
           ", the free ones of ", slots(), " slots; end some sequences, or make the cache larger");
  for (const int64_t length : lengths)
    BF_CHECK(length >= 0 && length <= positions_, "admit: a sequence of length ", length, " came, expected 0 to ", positions_,
             ", the positions of a slot");
  std::vector<int64_t> admitted(free_.rbegin(), free_.rbegin() + static_cast<std::ptrdiff_t>(lengths.size()));
  for (const int64_t length : lengths) {  // nothing allocates from here on
    running_.push_back(free_.back());
    fill(free_.back(), length);
    free_.pop_back();
  }
  return admitted;
}

void SlotTable::extend(int64_t count) {
  BF_CHECK(count >= 0, "extend: got ", count, " positions, expected 0 or more");
  for (const int64_t slot : running_) {
    const int64_t length = lengths_[static_cast<size_t>(slot)];
    BF_CHECK(count <= positions_ - length, "extend: a sequence has ", length, " positions and needs ", count, " more, but the cache holds ",
             positions_);
  }
  for (const int64_t slot : running_) fill(slot, count);
}

void SlotTable::crop(int64_t count) {
  BF_CHECK(count >= 0, "crop: got ", count, " positions, expected 0 or more");
  for (const int64_t slot : running_) {
    const int64_t length = lengths_[static_cast<size_t>(slot)];
    BF_CHECK(count <= length, "crop: got ", count, " positions, but a sequence has only ", length);
  }
  for (const int64_t slot : running_) lengths_[static_cast<size_t>(slot)] -= count;
}

std::vector<SlotTable::Copy> SlotTable::reorder(const std::vector<int64_t>& parents) {
  const int64_t before = static_cast<int64_t>(running_.size());
  for (const int64_t parent : parents)
    BF_CHECK(parent >= 0 && parent < before, "reorder: got parent ", parent, ", expected 0 <= parent < ", before,
             ", the running sequences");
  BF_CHECK(parents.size() <= lengths_.size(), "reorder: ", parents.size(), " sequences do not fit in ", slots(), " slots");

  std::vector<char> state(lengths_.size(), ended);
  std::vector<int64_t> after;
  std::vector<Copy> copies;
  after.reserve(lengths_.size());
  copies.reserve(parents.size());
  // Nothing allocates from here on: free_ has had room for all slots since it was made.
  for (const int64_t parent : parents) state[static_cast<size_t>(running_[static_cast<size_t>(parent)])] = is_parent;
  for (const int64_t slot : running_)
    if (state[static_cast<size_t>(slot)] == ended) {
      lengths_[static_cast<size_t>(slot)] = 0;
      free_.push_back(slot);
    }
  for (const int64_t parent : parents) {
    const int64_t from = running_[static_cast<size_t>(parent)];
    if (state[static_cast<size_t>(from)] == is_parent) {
      state[static_cast<size_t>(from)] = reused;
      after.push_back(from);
      continue;
    }
    const auto labels = labels_.begin() + from * positions_;
    const int64_t length = lengths_[static_cast<size_t>(from)];
    int64_t first = -1;
    auto found = free_.rbegin();
    for (auto each = free_.rbegin(); each != free_.rend() && first < length; ++each) {
      const int64_t alike = std::mismatch(labels, labels + length, labels_.begin() + *each * positions_).first - labels;
      if (alike > first) first = alike, found = each;
    }
    const int64_t to = *found;
    free_.erase(std::next(found).base());
    lengths_[static_cast<size_t>(to)] = length;
    if (first < length) copies.push_back({from, to, first, length});
    std::copy(labels + first, labels + length, labels_.begin() + to * positions_ + first);
    after.push_back(to);
  }
  running_ = std::move(after);
  return copies;
}

void SlotTable::check_integrity() const {
  std::vector<int> seen(lengths_.size(), 0);
  const auto see = [&](int64_t slot) {
    if (slot < 0 || slot >= slots()) broken("slot " + std::to_string(slot) + " does not exist");
    if (++seen[static_cast<size_t>(slot)] > 1) broken("slot " + std::to_string(slot) + " is listed twice");
  };
  for (const int64_t slot : running_) {
    see(slot);
    const int64_t length = lengths_[static_cast<size_t>(slot)];
    if (length < 0 || length > positions_) broken("slot " + std::to_string(slot) + " has length " + std::to_string(length));
  }
  for (const int64_t slot : free_) {
    see(slot);
    if (lengths_[static_cast<size_t>(slot)] != 0) broken("slot " + std::to_string(slot) + " is free, but not empty");
  }
  if (std::find(seen.begin(), seen.end(), 0) != seen.end()) broken("a slot is neither free nor running");
}

}  // namespace bertfast
