// The CPU kernels: one entry per op, one table per instruction set. A kernel computes a piece of an op, on the thread
// that calls it; which piece and on which thread changes no bit of the result.
//
// This header is included by every per-ISA translation unit, so it carries no inline code and no STL: an inline
// function compiled with -mavx512f may be the copy the linker keeps, and then it runs on machines without AVX-512.
#pragma once

#include <cstdint>

namespace bertfast::cpu {

enum class Activation : int { none, gelu, gelu_tanh, relu, silu, tanh };

// out = LayerNorm(word[ids] + type[types] + position[positions]) * weight + bias. All tables are [rows, hidden].
struct Embedding {
  const int64_t* input_ids;     // [T]
  const int64_t* position_ids;  // [T]
  const int64_t* type_ids;      // [T], or null: type 0 everywhere
  const float *word_table, *position_table, *type_table;
  int64_t word_rows, position_rows, type_rows;
  const float *weight, *bias;  // [hidden]
  float* out;                  // [T, hidden]
  int64_t tokens, hidden;
  float eps;
};

// out = LayerNorm(x + residual) * weight + bias.
struct LayerNorm {
  const float* x;              // [rows, hidden]
  const float* residual;       // [rows, hidden], or null
  const float *weight, *bias;  // [hidden]
  float* out;                  // [rows, hidden]; may be x
  int64_t rows, hidden;
  float eps;
};

// out = activation(x weight^T + bias).
struct Linear {
  const float* x;       // [rows, inputs], rows x_stride apart
  const float* weight;  // [features, inputs]
  const float* bias;    // [features], or null
  float* out;           // [rows, features], rows out_stride apart
  int64_t rows, inputs, features, x_stride, out_stride;
  Activation activation;
};

// out = softmax(q k^T scale) v for every head of every sequence. Rows are [heads * head_size], strides apart; sequence b
// owns rows cu_seqlens[b] : cu_seqlens[b + 1]. causal: query i sees keys 0 .. i + keys - queries.
struct Attention {
  const float *q, *k, *v;
  float* out;  // [queries, heads, head_size], contiguous
  int64_t q_stride, k_stride, v_stride;
  const int32_t *cu_seqlens_q, *cu_seqlens_k;
  int64_t sequences, heads, head_size;
  float scale;
  bool causal;
};

// out = softmax(q k^T scale) v of single queries, each against a range of the cells of one row of a KV cache.
struct CachedAttention {
  const float* q;               // [queries, heads, head_size], rows q_stride apart
  const float *keys, *values;   // [rows, heads, cells, head_size], strides below
  const int64_t* rows;          // [queries]: whose cells a query reads
  const int64_t *first, *last;  // [queries]: it reads cells first .. last - 1; first null: from 0
  float* out;                   // [queries, heads, head_size], contiguous
  int64_t q_stride, key_row, key_head, key_cell, value_row, value_head, value_cell;
  int64_t queries, heads, head_size;
  float scale;
};

// How attention is cut; the same on every machine, so the order of a sum is too.
constexpr int64_t attention_rows = 64;   // queries in a piece
constexpr int64_t attention_keys = 128;  // keys in a tile
constexpr int64_t max_head_size = 256;

struct Kernels {
  const char* isa;

  // Tokens [first, last). False if an id is outside of its table, which is then not read.
  bool (*embed_layer_norm)(const Embedding&, int64_t first, int64_t last);
  // Rows [first, last).
  void (*add_layer_norm)(const LayerNorm&, int64_t first, int64_t last);
  // Rows [row0, row1) of columns [col0, col1); scratch: linear_scratch floats.
  void (*linear)(const Linear&, int64_t row0, int64_t row1, int64_t col0, int64_t col1, float* scratch);
  // Queries [first, last) of one head of one sequence, counted from the sequence's start; at most attention_rows of
  // them, starting at a multiple of it. scratch: attention_scratch floats.
  void (*attention)(const Attention&, int64_t sequence, int64_t head, int64_t first, int64_t last, float* scratch);
  // One query and head; scratch: as many floats as the query reads cells.
  void (*cached_attention)(const CachedAttention&, int64_t query, int64_t head, float* scratch);

  int64_t linear_scratch;
  int64_t attention_scratch;
};

}  // namespace bertfast::cpu
