// The CPU kernels: one entry per op, one table per instruction set. A kernel computes a piece of an op, on the thread
// that calls it; which piece and on which thread changes no bit of the result.
//
// This header is included by every per-ISA translation unit, so it carries no inline code and no STL: an inline
// function compiled with -mavx512f may be the copy the linker keeps, and then it runs on machines without AVX-512.
#pragma once

#include <cstdint>

namespace bertfast::cpu {

struct bfloat16 {
  uint16_t bits;  // the upper half of a float's
};

enum class Activation : int { none, gelu, gelu_tanh, relu, silu, tanh };

// The operands of each op, of float or of bfloat16; sums, statistics and softmax are in float either way.

// out = LayerNorm(word[ids] + type[types] + position[positions]) * weight + bias. All tables are [rows, hidden]; words may be int8, in
// panels of word_width words, [panels, groups, 16, word_width, 4] and scales [panels, spans, word_width], as products read them too.
template <class Number, class Word = Number>
struct EmbeddingOf {
  const int64_t* input_ids;     // [T]
  const int64_t* position_ids;  // [T]
  const int64_t* type_ids;      // [T], or null: type 0 everywhere
  const Word* word_table;
  const float* word_scales;  // of int8 words, which have them and a width; others have neither
  int64_t word_width;
  const Number *position_table, *type_table;
  int64_t word_rows, position_rows, type_rows;
  const Number *weight, *bias;  // [hidden]
  Number* out;                  // [T, hidden]
  int64_t tokens, hidden;
  float eps;
};

// out = LayerNorm(x + residual) * weight + bias.
template <class Number>
struct LayerNormOf {
  const Number* x;              // [rows, hidden]
  const Number* residual;       // [rows, hidden], or null
  const Number *weight, *bias;  // [hidden]
  Number* out;                  // [rows, hidden]; may be x
  int64_t rows, hidden;
  float eps;
};

// out = activation(x weight^T + bias).
template <class Number>
struct LinearOf {
  const Number* x;       // [rows, inputs], rows x_stride apart
  const Number* weight;  // [features, inputs]
  const Number* bias;    // [features], or null
  Number* out;           // [rows, features], rows out_stride apart
  int64_t rows, inputs, features, x_stride, out_stride;
  Activation activation;
};

// Rows of a weight, one after the other; null and 0 where there are none.
template <class Number>
struct WeightsOf {
  const Number* rows;
  int64_t count;
};

// out = softmax(q k^T scale) v for every head of every sequence. Rows are [heads * head_size], strides apart; sequence b
// owns rows cu_seqlens[b] : cu_seqlens[b + 1]. causal: query i sees keys 0 .. i + keys - queries.
template <class Number>
struct AttentionOf {
  const Number *q, *k, *v;
  Number* out;  // [queries, heads, head_size], contiguous
  int64_t q_stride, k_stride, v_stride;
  const int32_t *cu_seqlens_q, *cu_seqlens_k;
  int64_t sequences, heads, head_size;
  float scale;
  bool causal;
  bool bfloat16_products;  // allowed: q, k, v and the weights may be rounded first
};

// Where the cells of a KV cache lie: numbers from one row, head and cell to the next.
struct CacheStrides {
  int64_t key_row, key_head, key_cell, value_row, value_head, value_cell;
};

// out = softmax(q k^T scale) v of single queries, each against a range of the cells of one row of a KV cache.
template <class Number>
struct CachedAttentionOf {
  const Number* q;              // [queries, heads, head_size], rows q_stride apart
  const Number *keys, *values;  // [rows, heads, cells, head_size]
  const int64_t* rows;          // [queries]: whose cells a query reads
  const int64_t *first, *last;  // [queries]: it reads cells first .. last - 1; first null: from 0
  Number* out;                  // [queries, heads, head_size], contiguous
  int64_t q_stride;
  CacheStrides strides;
  int64_t queries, heads, head_size;
  float scale;
};

// int8, as bertfast/ops/int8.py defines it: inputs are turned by groups of 64, and weights lie in panels of 64 features. Two neighbouring
// groups are a span (the last may be half of one), and a weight has a scale for each. A quantized row is groups * int8_group_bytes: the
// int8 of all groups, a float scale for each, which those of a span may share, and for each what its sum of products starts with, as
// int32: -128 times the sum of its int8, since weights carry 128 too much.
constexpr int64_t int8_group = 64;
constexpr int64_t int8_group_bytes = int8_group + 8;

struct Int8Quantize {
  const float* x;  // [rows, inputs], rows x_stride apart
  char* out;       // [rows, groups * int8_group_bytes]
  int64_t inputs, groups, x_stride;
};

// out = activation(x weight^T + bias), for x and weight of int8.
struct Int8Linear {
  const char* x;          // quantized rows
  const uint8_t* panels;  // [panels, groups, 16, 64, 4]
  const float* scales;    // [panels, spans, 64]
  const float* bias;      // [features], or null
  float* out;             // [rows, features], rows out_stride apart; or null
  char* quantized;        // null, or the result quantized, a span two panels, the inputs of the next product, which has out_groups
  int64_t groups, features, out_stride, out_groups;
  Activation activation;
};

// How work is cut; the same on every machine, so the order of a sum is too.
constexpr int64_t linear_rows = 384;     // most rows in a piece
constexpr int64_t attention_rows = 512;  // most queries in a piece
constexpr int64_t attention_keys = 128;  // keys in a tile
constexpr int64_t max_head_size = 256;

// Queries [first, last) of one head of one sequence, counted from the sequence's start.
struct AttentionPiece {
  int64_t sequence, head, first, last;
};

struct Int8Kernels {
  int levels;  // the largest magnitude of a quantized input: 127, or 63 where the sum of two products must fit 16 bits
  // Spans [first, last) of all spans of all rows.
  void (*quantize)(const Int8Quantize&, int64_t first, int64_t last);
  // Rows [row0, row1) of panels [panel0, panel1): one, or two that are a span of what is quantized.
  void (*linear)(const Int8Linear&, int64_t row0, int64_t row1, int64_t panel0, int64_t panel1);
  // As that of KernelsOf.
  bool (*embed_layer_norm)(const EmbeddingOf<float, uint8_t>&, int64_t first, int64_t last);
};

template <class Number>
struct KernelsOf {
  // Tokens [first, last). False if an id is outside of its table, which is then not read.
  bool (*embed_layer_norm)(const EmbeddingOf<Number>&, int64_t first, int64_t last);
  // Rows [first, last).
  void (*add_layer_norm)(const LayerNormOf<Number>&, int64_t first, int64_t last);
  // Rows [row0, row1), at most linear_rows, of columns [col0, col1), while the weights of the thread's next piece are fetched: rows as
  // long as these. scratch: linear_scratch floats.
  void (*linear)(const LinearOf<Number>&, int64_t row0, int64_t row1, int64_t col0, int64_t col1, const WeightsOf<Number>& next,
                 float* scratch);
  // A piece of at most attention_rows queries, while what `next` reads is fetched; scratch: attention_scratch floats.
  void (*attention)(const AttentionOf<Number>&, const AttentionPiece& piece, const AttentionPiece& next, float* scratch);
  // The same where bfloat16_products are allowed: products of bfloat16 if the CPU has them.
  void (*rounded_attention)(const AttentionOf<Number>&, const AttentionPiece& piece, const AttentionPiece& next, float* scratch);
  // One query and head; scratch: as many floats as the query reads cells.
  void (*cached_attention)(const CachedAttentionOf<Number>&, int64_t query, int64_t head, float* scratch);
};

struct Kernels {
  const char* isa;
  bool multiplies_bfloat16;  // or widens it to float first

  KernelsOf<float> of_float;
  KernelsOf<bfloat16> of_bfloat16;
  Int8Kernels of_int8;
  int64_t linear_scratch;
  int64_t attention_scratch;
};

using Embedding = EmbeddingOf<float>;
using LayerNorm = LayerNormOf<float>;
using Linear = LinearOf<float>;
using Attention = AttentionOf<float>;

}  // namespace bertfast::cpu
