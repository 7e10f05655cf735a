// Attention of single queries against a KV cache, one head at a time.
//
// A query reads each key and value once, so it is memory-bound: the cache stores the positions of one head contiguously, and both sweeps
// read them in order. The scores of the whole range stay in scratch, as a BERT's cache is short. The order of every sum depends on the
// number of keys alone.
#pragma once

#include <math.h>

#include "kernels.h"
#include "math.inl.h"
#include "vec.inl.h"

namespace bertfast::cpu::BERTFAST_ISA_NAME {
namespace {

constexpr int64_t prefetch_distance = 16;  // positions; one head's are a few pages, too short for the hardware prefetcher

// Prefetches four positions of one head.
template <class Number>
inline void prefetch_positions(const Number* from, int64_t stride, int64_t head_size) {
  for (int64_t i = 0; i < 4; ++i)
    for (int64_t d = 0; d < head_size; d += 64 / static_cast<int64_t>(sizeof(Number))) __builtin_prefetch(from + i * stride + d);
}

// scores[j] = scale * q . keys[j] for `count` keys; returns their maximum. Prefetches keys and values.
template <class Number>
inline float score_keys(const Number* q, const Number* keys, int64_t stride, const Number* values, int64_t value_stride, int64_t count,
                        int64_t head_size, float scale, float* scores) {
  float row_max = -INFINITY;
  int64_t j = 0;
  for (; j + 4 <= count; j += 4) {
    const Number* k = keys + j * stride;
    if (j + prefetch_distance + 4 <= count) prefetch_positions(k + prefetch_distance * stride, stride, head_size);
    prefetch_positions(values + j * value_stride, value_stride, head_size);
    Vec sum[4];
#pragma GCC unroll 4
    for (int64_t i = 0; i < 4; ++i) sum[i] = Vec::all(0.0f);
    for_each_block(head_size, [&](int64_t d, int64_t lanes) {
      const Vec a = Vec::load(q + d, lanes);
#pragma GCC unroll 4
      for (int64_t i = 0; i < 4; ++i) sum[i] = multiply_add(a, Vec::load(k + i * stride + d, lanes), sum[i]);
    });
    store_quad(scores + j, Vec::sums(sum), 4);
  }
  for (; j < count; ++j) {
    Vec sum = Vec::all(0.0f);
    for_each_block(head_size, [&](int64_t d, int64_t lanes) {
      sum = multiply_add(Vec::load(q + d, lanes), Vec::load(keys + j * stride + d, lanes), sum);
    });
    scores[j] = sum.sum();
  }
  for (j = 0; j < count; ++j) {
    scores[j] *= scale;
    row_max = scores[j] > row_max ? scores[j] : row_max;
  }
  return row_max;
}

// out = scale * sum over j of weights[j] values[j], for `blocks` vectors of values, the last with `lanes`; two chains of sums hide latency.
template <int64_t blocks, class Number>
inline void multiply_values(const float* weights, const Number* values, int64_t stride, int64_t count, Vec scale, Number* out,
                            int64_t lanes) {
  Vec sum[2][blocks];
#pragma GCC unroll 8
  for (int64_t c = 0; c < blocks; ++c) sum[0][c] = sum[1][c] = Vec::all(0.0f);
  int64_t j = 0;
  for (; j + 2 <= count; j += 2) {
#pragma GCC unroll 2
    for (int64_t i = 0; i < 2; ++i) {
      const Vec w = Vec::all(weights[j + i]);
#pragma GCC unroll 8
      for (int64_t c = 0; c < blocks; ++c)
        sum[i][c] = multiply_add(w, Vec::load(values + (j + i) * stride + c * Vec::width, lanes), sum[i][c]);
    }
  }
  if (j < count) {
    const Vec w = Vec::all(weights[j]);
#pragma GCC unroll 8
    for (int64_t c = 0; c < blocks; ++c) sum[0][c] = multiply_add(w, Vec::load(values + j * stride + c * Vec::width, lanes), sum[0][c]);
  }
#pragma GCC unroll 8
  for (int64_t c = 0; c < blocks; ++c) ((sum[0][c] + sum[1][c]) * scale).store(out + c * Vec::width, lanes);
}

template <class Number>
void cached_attention(const CachedAttentionArgs<Number>& op, int64_t query, int64_t head, float* scratch) {
  const int64_t D = op.head_size, row = op.rows[query], first = op.first ? op.first[query] : 0, count = op.last[query] - first;
  Number* out = op.out + (query * op.heads + head) * D;
  if (count == 0) {
    for_each_block(D, [&](int64_t d, int64_t lanes) { Vec::all(0.0f).store(out + d, lanes); });
    return;
  }
  const Number* keys = op.keys + row * op.strides.key_row + head * op.strides.key_head + first * op.strides.key_position;
  const Number* values = op.values + row * op.strides.value_row + head * op.strides.value_head + first * op.strides.value_position;
  const float row_max = score_keys(op.q + query * op.q_stride + head * D, keys, op.strides.key_position, values, op.strides.value_position,
                                   count, D, op.scale, scratch);
  Vec total = Vec::all(0.0f);
  for_each_block(count, [&](int64_t j, int64_t lanes) {
    Vec weight = exp(Vec::load(scratch + j, lanes) - Vec::all(row_max));
    if (lanes != Vec::width) weight = weight.blend(lanes, Vec::all(0.0f));
    weight.store(scratch + j, lanes);
    total = total + weight;
  });
  const Vec scale = Vec::all(1.0f / total.sum());
  int64_t d = 0;
  for (; d + 4 * Vec::width <= D; d += 4 * Vec::width)
    multiply_values<4>(scratch, values + d, op.strides.value_position, count, scale, out + d, Vec::width);
  for_each_block(D - d, [&](int64_t i, int64_t lanes) {
    multiply_values<1>(scratch, values + d + i, op.strides.value_position, count, scale, out + d + i, lanes);
  });
}

}  // namespace
}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
