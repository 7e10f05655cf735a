// Attention of a few queries of one head over all keys of their sequence, a tile of keys at a time with the running
// maximum (Milakov and Gimelshein 2018; FlashAttention, Dao et al. 2022): no [Sq, Sk] matrix in memory.
//
// A tile's keys are laid out as [head_size, keys] first, so scores form vectors along the keys and are never summed
// across lanes; its values are copied so that they lie back to back. Each score is a sum over d, each output one over
// the keys, both in ascending order: the bits depend on the sequence alone.
//
// What is multiplied lies in words of 32 bits: a float, or two bfloat16 that are multiplied and added up in one instruction, neighbours
// along what is summed over.
#pragma once

#include <math.h>

#include "math.inl.h"
#include "vec.h"

namespace bertfast::cpu::BERTFAST_ISA_NAME {
namespace {

constexpr int64_t attention_depth = 64;  // terms of a score added up in one go: long sums in one register lose digits
constexpr int64_t attention_scratch =
    2 * attention_keys * max_head_size + 2 * attention_rows * max_head_size + Vec::tile_rows * attention_keys + 2 * attention_rows;

// A word is one float.
struct Floats {
  static constexpr int64_t terms = 1;
  Vec v;
  static Floats all(const float* word) { return {Vec::all(*word)}; }
  static Floats load(const float* words) { return {Vec::load(words)}; }
  // A row of the first `numbers`.
  template <class Number>
  static Vec words(const Number* row, int64_t numbers) {
    return Vec::load(row, numbers);
  }
  // What is summed over lies in rows, `count` of them: the first `lanes` columns.
  template <class Number>
  static Vec columns(const Number* rows, int64_t, int64_t, int64_t lanes) {
    return Vec::load(rows, lanes);
  }
  // As numbers at, at + 1, ... of a row.
  static void put(float* row, int64_t at, Vec x) { x.store(row + at); }
};
inline Vec multiply_add(Floats a, Floats b, Vec c) { return multiply_add(a.v, b.v, c); }

#if defined(__AVX512BF16__)

// A word is two bfloat16.
struct PairWords {
  static constexpr int64_t terms = 2;
  Pairs v;
  static PairWords all(const float* word) {
    int32_t bits;
    __builtin_memcpy(&bits, word, sizeof bits);
    return {{reinterpret_cast<__m512bh>(_mm512_set1_epi32(bits))}};
  }
  static PairWords load(const float* words) { return {{reinterpret_cast<__m512bh>(_mm512_loadu_si512(words))}}; }
  static Vec words(const float* row, int64_t numbers) {
    const Vec low = Vec::load(row, numbers < Vec::width ? numbers : Vec::width);
    const Vec high = numbers > Vec::width ? Vec::load(row + Vec::width, numbers - Vec::width) : Vec::all(0.0f);
    return {_mm512_castsi512_ps(reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high.v, low.v)))};
  }
  static Vec columns(const float* rows, int64_t stride, int64_t count, int64_t lanes) {
    const __m512i low = bits(Vec::load(rows, lanes)), high = count > 1 ? bits(Vec::load(rows + stride, lanes)) : _mm512_setzero_si512();
    return {_mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)))};
  }
  static Vec words(const bfloat16* row, int64_t numbers) {
    return {_mm512_castsi512_ps(reinterpret_cast<__m512i>(Pairs::load(row, numbers).v))};
  }
  static Vec columns(const bfloat16* rows, int64_t stride, int64_t count, int64_t lanes) {
    const __m512i low = _mm512_castps_si512(Vec::load(rows, lanes).v);  // a bfloat16 in the upper half of each word
    const __m512i high = count > 1 ? _mm512_castps_si512(Vec::load(rows + stride, lanes).v) : _mm512_setzero_si512();
    return {_mm512_castsi512_ps(_mm512_or_si512(_mm512_srli_epi32(low, 16), high))};
  }
  static __m512i bits(Vec x) { return _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x.v))); }
  static void put(float* row, int64_t at, Vec x) { x.store(reinterpret_cast<bfloat16*>(row) + at); }
};
inline Vec multiply_add(PairWords a, PairWords b, Vec c) { return multiply_add(a.v, b.v, c); }
using HalfWords = PairWords;

#else

using HalfWords = Floats;

#endif

struct AttentionTile {
  float* keys;     // words [depth, attention_keys]; beyond the last key: 0
  float* values;   // words [attention_keys / terms, padded]
  float* sums;     // [attention_rows, padded]: the output so far
  float* queries;  // words [attention_rows, depth], where they are not read as they lie
  float* scores;   // [Vec::tile_rows, attention_keys]; then as words, the weights
  float* maximum;  // [attention_rows]
  float* total;    // [attention_rows]
  int64_t head_size, padded;
};

// out[m, column] = sum over k of x[m, k] * right[k, column] (or added to out), for `rows` rows and `blocks` vectors; x and right in words.
template <class Operand, int64_t rows, int64_t blocks>
inline void broadcast_tile(const float* x, int64_t x_stride, const float* right, int64_t right_stride, float* out, int64_t out_stride,
                           int64_t depth, bool add) {
  Vec sum[rows][blocks];
#pragma GCC unroll 8
  for (int64_t m = 0; m < rows; ++m)
#pragma GCC unroll 8
    for (int64_t c = 0; c < blocks; ++c) sum[m][c] = Vec::all(0.0f);
  for (int64_t k = 0; k < depth; ++k) {
    Operand a[rows];
#pragma GCC unroll 8
    for (int64_t m = 0; m < rows; ++m) a[m] = Operand::all(x + m * x_stride + k);
#pragma GCC unroll 8
    for (int64_t c = 0; c < blocks; ++c) {
      const Operand b = Operand::load(right + k * right_stride + c * Vec::width);
#pragma GCC unroll 8
      for (int64_t m = 0; m < rows; ++m) sum[m][c] = multiply_add(a[m], b, sum[m][c]);
    }
  }
#pragma GCC unroll 8
  for (int64_t m = 0; m < rows; ++m)
#pragma GCC unroll 8
    for (int64_t c = 0; c < blocks; ++c) {
      float* to = out + m * out_stride + c * Vec::width;
      (add ? Vec::load(to) + sum[m][c] : sum[m][c]).store(to);
    }
}

// The same for `count` rows (1 .. rows) and any number of columns, a multiple of Vec::width.
template <class Operand, int64_t rows>
void broadcast_rows(int64_t count, const float* x, int64_t x_stride, const float* right, int64_t right_stride, float* out,
                    int64_t out_stride, int64_t columns, int64_t depth, bool add) {
  if constexpr (rows > 1)
    if (count < rows)
      return broadcast_rows<Operand, rows - 1>(count, x, x_stride, right, right_stride, out, out_stride, columns, depth, add);
  int64_t c = 0;
  for (; c + 4 * Vec::width <= columns; c += 4 * Vec::width)
    broadcast_tile<Operand, rows, 4>(x, x_stride, right + c, right_stride, out + c, out_stride, depth, add);
  switch ((columns - c) / Vec::width) {
    case 3:
      return broadcast_tile<Operand, rows, 3>(x, x_stride, right + c, right_stride, out + c, out_stride, depth, add);
    case 2:
      return broadcast_tile<Operand, rows, 2>(x, x_stride, right + c, right_stride, out + c, out_stride, depth, add);
    case 1:
      return broadcast_tile<Operand, rows, 1>(x, x_stride, right + c, right_stride, out + c, out_stride, depth, add);
  }
}

template <class Operand>
inline int64_t words_of(int64_t n) {
  return (n + Operand::terms - 1) / Operand::terms;
}
inline int64_t padded_to_vec(int64_t n) { return (n + Vec::width - 1) / Vec::width * Vec::width; }

template <class Operand, class Number>
void load_keys(const AttentionTile& tile, const Number* k, int64_t k_stride, const Number* v, int64_t v_stride, int64_t count) {
  constexpr int64_t W = Vec::width, terms = Operand::terms;
  for (int64_t j0 = 0; j0 < count; j0 += W)
    for_each_block<W * terms>(tile.head_size, [&](int64_t d, int64_t numbers) {
      Vec block[W];
#pragma GCC unroll 16
      for (int64_t i = 0; i < W; ++i) block[i] = j0 + i < count ? Operand::words(k + (j0 + i) * k_stride + d, numbers) : Vec::all(0.0f);
      Vec::transpose(block);
#pragma GCC unroll 16
      for (int64_t i = 0; i < W; ++i)
        if (i * terms < numbers) block[i].store(tile.keys + (d / terms + i) * attention_keys + j0);
    });
  for (int64_t j = 0; j < count; j += terms)
    for_each_block(tile.head_size, [&](int64_t d, int64_t lanes) {
      const Number* rows = v + j * v_stride + d;
      Operand::columns(rows, v_stride, count - j, lanes).store(tile.values + j / terms * tile.padded + d);
    });
}

// Turns a row of scores into words of 2^(score * scale - maximum), 0 beyond the first `seen`; returns what the sums so far must be
// multiplied by.
template <class Operand>
float soften(float* scores, int64_t seen, int64_t columns, float scale, float* maximum, float* total) {
  Vec highest = Vec::all(-INFINITY);
  for_each_block(seen, [&](int64_t j, int64_t lanes) {
    Vec score = Vec::load(scores + j) * Vec::all(scale);
    if (lanes != Vec::width) score = score.keep(lanes, Vec::all(-INFINITY));
    highest = max(highest, score);
  });
  const float before = *maximum, now = highest.largest() > before ? highest.largest() : before;
  Vec sum = Vec::all(0.0f);
  for_each_block(seen, [&](int64_t j, int64_t lanes) {
    Vec weight = exp2_below(multiply_add(Vec::load(scores + j), Vec::all(scale), Vec::all(-now)));
    if (lanes != Vec::width) weight = weight.keep(lanes, Vec::all(0.0f));
    Operand::put(scores, j, weight);  // never beyond the scores that were read
    sum = sum + weight;
  });
  for (int64_t j = padded_to_vec(seen); j < columns; j += Vec::width) Operand::put(scores, j, Vec::all(0.0f));
  const float shrink = before == -INFINITY ? 0.0f : exp2f(before - now);
  *maximum = now;
  *total = *total * shrink + sum.sum();
  return shrink;
}

// Fetches a part of what a piece reads at first, the part'th of `parts`: its queries, keys and values are short and far apart, so that the
// hardware does not see them coming.
template <class Number>
void fetch_piece(const AttentionOf<Number>& op, const AttentionPiece& piece, int64_t part, int64_t parts) {
  const int64_t queries = piece.last - piece.first, q0 = op.cu_seqlens_q[piece.sequence] + piece.first,
                k0 = op.cu_seqlens_k[piece.sequence];
  int64_t keys = op.cu_seqlens_k[piece.sequence + 1] - k0;
  if (queries == 0) return;
  if (keys > attention_keys) keys = attention_keys;
  const auto fetch = [&](const Number* row) {
    for (int64_t d = 0; d < op.head_size; d += 64 / sizeof(Number)) prefetch(row + piece.head * op.head_size + d);
  };
  for (int64_t m = queries * part / parts; m < queries * (part + 1) / parts; ++m) fetch(op.q + (q0 + m) * op.q_stride);
  for (int64_t j = keys * part / parts; j < keys * (part + 1) / parts; ++j) {
    fetch(op.k + (k0 + j) * op.k_stride);
    fetch(op.v + (k0 + j) * op.v_stride);
  }
}

template <class Operand, class Number>
void attention(const AttentionOf<Number>& op, const AttentionPiece& piece, const AttentionPiece& next, float* scratch) {
  const auto [sequence, head, first, last] = piece;
  const int64_t D = op.head_size, q0 = op.cu_seqlens_q[sequence], k0 = op.cu_seqlens_k[sequence];
  const int64_t queries = op.cu_seqlens_q[sequence + 1] - q0, keys = op.cu_seqlens_k[sequence + 1] - k0, rows = last - first;
  AttentionTile tile;
  tile.head_size = D;
  tile.padded = padded_to_vec(D);
  tile.keys = scratch;
  tile.values = tile.keys + attention_keys * max_head_size;
  tile.sums = tile.values + attention_keys * max_head_size;
  tile.queries = tile.sums + attention_rows * max_head_size;
  tile.scores = tile.queries + attention_rows * max_head_size;
  tile.maximum = tile.scores + Vec::tile_rows * attention_keys;
  tile.total = tile.maximum + attention_rows;
  for (int64_t m = 0; m < rows; ++m) {
    tile.maximum[m] = -INFINITY;
    tile.total[m] = 0.0f;
  }
  for (int64_t i = 0; i < rows * tile.padded; i += Vec::width) Vec::all(0.0f).store(tile.sums + i);

  const auto seen_by = [&](int64_t m) {  // how many keys query first + m sees
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
        Operand::words(given + m * op.q_stride + d, numbers).store(tile.queries + m * tile.padded + d / Operand::terms);
      });
    q = tile.queries;
    q_stride = tile.padded;
  }
  const float scale = op.scale * 1.44269504f;  // of powers of two
  constexpr int64_t most_depth = attention_depth / Operand::terms;
  const int64_t depth = words_of<Operand>(D), most = seen_by(rows - 1), steps = (rows + Vec::tile_rows - 1) / Vec::tile_rows;
  for (int64_t at = 0; at < most; at += attention_keys) {
    const int64_t loaded = at + attention_keys < most ? attention_keys : most - at;
    load_keys<Operand>(tile, op.k + (k0 + at) * op.k_stride + head * D, op.k_stride, op.v + (k0 + at) * op.v_stride + head * D, op.v_stride,
                       loaded);
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t m0 = step * Vec::tile_rows, height = m0 + Vec::tile_rows < rows ? Vec::tile_rows : rows - m0;
      if (at == 0) fetch_piece(op, next, step, steps);
      const int64_t seen_here = seen_by(m0 + height - 1) - at, count = seen_here < loaded ? seen_here : loaded;
      if (count <= 0) continue;
      const int64_t columns = padded_to_vec(count);
      for (int64_t k = 0; k < depth; k += most_depth)
        broadcast_rows<Operand, Vec::tile_rows>(height, q + m0 * q_stride + k, q_stride, tile.keys + k * attention_keys, attention_keys,
                                                tile.scores, attention_keys, columns, depth - k < most_depth ? depth - k : most_depth,
                                                k != 0);
      for (int64_t m = m0; m < m0 + height; ++m) {
        int64_t seen = seen_by(m) - at;
        seen = seen < 0 ? 0 : seen < count ? seen : count;
        float* scores = tile.scores + (m - m0) * attention_keys;
        if (seen == 0) {
          for (int64_t j = 0; j < columns; j += Vec::width) Operand::put(scores, j, Vec::all(0.0f));
          continue;
        }
        const Vec shrink = Vec::all(soften<Operand>(scores, seen, columns, scale, tile.maximum + m, tile.total + m));
        float* sums = tile.sums + m * tile.padded;
        if (at != 0)
          for (int64_t d = 0; d < tile.padded; d += Vec::width) (Vec::load(sums + d) * shrink).store(sums + d);
      }
      broadcast_rows<Operand, Vec::tile_rows>(height, tile.scores, attention_keys, tile.values, tile.padded, tile.sums + m0 * tile.padded,
                                              tile.padded, tile.padded, words_of<Operand>(count), true);
    }
  }

  for (int64_t m = 0; m < rows; ++m) {  // a query that saw nothing has total 0 and sums 0
    const Vec scale = Vec::all(tile.total[m] > 0.0f ? 1.0f / tile.total[m] : tile.total[m]);
    Number* out = op.out + ((q0 + first + m) * op.heads + head) * D;
    for_each_block(D, [&](int64_t d, int64_t lanes) { (Vec::load(tile.sums + m * tile.padded + d) * scale).store(out + d, lanes); });
  }
}

}  // namespace
}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
