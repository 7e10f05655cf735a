// Attention of the queries of a piece over all keys of their sequence, a tile of keys at a time, with an online softmax (Milakov and
// Gimelshein 2018; FlashAttention, Dao et al. 2022): no [Sq, Sk] matrix in memory.
//
// A tile's keys are transposed to [head_size, keys], so that scores are vectors along the keys and need no horizontal sums; its values are
// copied to contiguous rows. Scores sum over d and outputs over keys, both in ascending order: the bits depend on the sequence alone.
#pragma once

#include <float.h>
#include <math.h>

#include "varlen_attention_operands.inl.h"
#include "varlen_attention_softmax.inl.h"
#include "varlen_attention_tile.inl.h"
#include "vec.inl.h"

namespace bertfast::cpu::BERTFAST_ISA_NAME {
namespace {

constexpr int64_t attention_scratch = 2 * attention_keys * max_head_size + 2 * attention_rows * max_head_size +
                                      2 * Vec::tile_rows * attention_keys + attention_rows * (1 + Vec::width);

// Prefetches the given one of `parts` equal parts of what a piece reads for the tile of keys at `at`, with the queries if it is the first
// tile. The rows are short and far apart, which defeats the hardware prefetcher.
template <class Number>
void prefetch_tile(const VarlenAttentionArgs<Number>& op, const AttentionPiece& piece, int64_t at, int64_t part, int64_t parts) {
  const int64_t queries = piece.last - piece.first, q0 = op.cu_seqlens_q[piece.sequence] + piece.first,
                k0 = op.cu_seqlens_k[piece.sequence] + at;
  int64_t keys = op.cu_seqlens_k[piece.sequence + 1] - k0;
  if (queries == 0) return;
  if (keys > attention_keys) keys = attention_keys;
  const auto prefetch_row = [&](const Number* row) {
    for (int64_t d = 0; d < op.head_size; d += 64 / sizeof(Number)) prefetch(row + piece.head * op.head_size + d);
  };
  if (at == 0)
    for (int64_t m = queries * part / parts; m < queries * (part + 1) / parts; ++m) prefetch_row(op.q + (q0 + m) * op.q_stride);
  for (int64_t j = keys * part / parts; j < keys * (part + 1) / parts; ++j) {
    prefetch_row(op.k + (k0 + j) * op.k_stride);
    prefetch_row(op.v + (k0 + j) * op.v_stride);
  }
}

template <class Operand, class Number>
void varlen_attention(const VarlenAttentionArgs<Number>& op, const AttentionPiece& piece, const AttentionPiece& next, float* scratch) {
  const auto [sequence, head, first, last] = piece;
  const int64_t D = op.head_size, q0 = op.cu_seqlens_q[sequence], k0 = op.cu_seqlens_k[sequence];
  const int64_t queries = op.cu_seqlens_q[sequence + 1] - q0, keys = op.cu_seqlens_k[sequence + 1] - k0, rows = last - first;
  AttentionTile tile;
  tile.head_size = D;
  tile.padded = padded_to_vec(D);
  tile.keys = scratch;
  tile.values = tile.keys + attention_keys * max_head_size;
  tile.outputs = tile.values + attention_keys * max_head_size;
  tile.queries = tile.outputs + attention_rows * max_head_size;
  tile.scores = tile.queries + attention_rows * max_head_size;
  tile.weight_sums = tile.scores + 2 * Vec::tile_rows * attention_keys;
  tile.row_max = tile.weight_sums + attention_rows * Vec::width;
  tile.scale = fabsf(op.scale) * 1.44269504f;
  if (tile.scale < FLT_MIN) tile.scale = FLT_MIN;  // -inf times 0 would be NaN
  tile.negative = op.scale < 0.0f;

  const auto seen_by = [&](int64_t m) {  // number of keys that query first + m sees
    const int64_t seen = op.causal ? first + m + 1 + keys - queries : keys;
    return seen < 0 ? 0 : seen < keys ? seen : keys;
  };
  const Number* given = op.q + (q0 + first) * op.q_stride + head * D;
  const float* q;
  int64_t q_stride = op.q_stride;
  if constexpr (sizeof(Number) == sizeof(float) && Operand::terms == 1) {
    q = given;
  } else {
    for (int64_t m = 0; m < rows; ++m)
      for_each_block<Vec::width * Operand::terms>(D, [&](int64_t d, int64_t numbers) {
        Operand::pack_row(given + m * op.q_stride + d, numbers).store(tile.queries + m * tile.padded + d / Operand::terms);
      });
    q = tile.queries;
    q_stride = tile.padded;
  }
  const int64_t most = seen_by(rows - 1), steps = (rows + Vec::tile_rows - 1) / Vec::tile_rows;
  Number* out = op.out + ((q0 + first) * op.heads + head) * D;
  AttentionStep buffers[2];
  buffers[0].scores = tile.scores;
  buffers[1].scores = tile.scores + Vec::tile_rows * attention_keys;
  for (int64_t at = 0; at < most; at += attention_keys) {
    const bool last_tile = at + attention_keys >= most;
    const int64_t loaded = last_tile ? most - at : attention_keys;
    load_keys<Operand>(tile, op.k + (k0 + at) * op.k_stride + head * D, op.k_stride, op.v + (k0 + at) * op.v_stride + head * D, op.v_stride,
                       loaded);
    tile.first = at == 0;
    const auto score_step = [&](int64_t index) {
      AttentionStep& step = buffers[index % 2];
      step.first = rows * index / steps;
      step.weight_sums = tile.weight_sums + step.first * Vec::width;
      step.rows = rows * (index + 1) / steps - step.first;
      for (int64_t m = 0; m < step.rows; ++m) {
        const int64_t seen = seen_by(step.first + m) - at;
        step.seen[m] = seen < 0 ? 0 : seen < loaded ? seen : loaded;
      }
      step.keys = step.seen[step.rows - 1];
      step.last = seen_by(step.first + step.rows - 1) <= at + attention_keys;
      if (step.keys > 0)
        with_constant<Vec::tile_rows>(step.rows, [&](auto count) { multiply_keys<Operand, count.value>(tile, step, q, q_stride); });
    };
    score_step(0);
    for (int64_t index = 0; index < steps; ++index) {
      AttentionStep& step = buffers[index % 2];
      if (step.keys > 0)
        with_constant<Vec::tile_rows>(
            step.rows, [&](auto count) { update_row_max<count.value>(step, tile.row_max + step.first, tile.scale, tile.first); });
      if (index + 1 < steps) score_step(index + 1);
      prefetch_tile(op, last_tile ? next : piece, last_tile ? 0 : at + attention_keys, index, steps);
      if (step.keys > 0)
        with_constant<Vec::tile_rows>(step.rows, [&](auto count) {
          multiply_values<Operand, count.value>(tile, step, out + step.first * op.heads * D, op.heads * D);
        });
    }
  }

  for (int64_t m = 0; m < rows && seen_by(m) == 0; ++m)
    for_each_block(D, [&](int64_t d, int64_t lanes) { Vec::all(0.0f).store(out + m * op.heads * D + d, lanes); });
}

}  // namespace
}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
