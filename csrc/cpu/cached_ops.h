// What generation needs besides the ops of a forward, on a KV cache of float or bfloat16, cut into items that the pool hands out
// (parallel.h).
#pragma once

#include <cstdint>

#include "kernels.h"

namespace bertfast::cpu {

template <class Number>
class CachedAttentionOp {
 public:
  // Throws std::invalid_argument, before anything is read, unless every query's row is in [0, rows) and its range in [0, cells].
  CachedAttentionOp(const Kernels& kernels, const CachedAttentionOf<Number>& args, int64_t rows, int64_t cells);
  int64_t items() const { return args_.queries * args_.heads; }
  void run(int64_t item) const;

 private:
  const Kernels& kernels_;
  CachedAttentionOf<Number> args_;
  int64_t longest_ = 0;  // range
};

// New keys and values, [tokens, heads, head_size], into their cells.
template <class Number>
struct CacheWrite {
  const Number *k, *v;
  Number *keys, *values;
  const int64_t *rows, *cells;  // [tokens]
  int64_t k_stride, v_stride;
  CacheStrides strides;
  int64_t tokens, heads, head_size;
};

template <class Number>
class CacheWriteOp {
 public:
  CacheWriteOp(const CacheWrite<Number>& args, int64_t rows, int64_t cells);  // throws as above
  int64_t items() const;
  void run(int64_t item) const;

 private:
  CacheWrite<Number> args_;
  int64_t tokens_per_item_;
};

// out[r] = the first column where row r is largest, as torch.argmax: a NaN counts as larger than anything. On our own threads, because
// torch's would go on spinning after it, beside the next step.
struct ArgmaxOp {
  const float* scores;  // [rows, columns], contiguous
  int64_t* out;         // [rows]
  int64_t rows, columns;

  int64_t items() const { return rows; }
  void run(int64_t row) const;
};

}  // namespace bertfast::cpu
