// The ops of the CPU: for each the struct of its arguments, and the kernels that compute a piece of it, one table per instruction set.
//
// The argument structs are the only description of an op in C++: a kernel reads one, the op that cuts it into items holds one (ops.h), a
// binding fills one from Python, and a plan records one whose addresses and row counts each replay fills in (plan/node.h).
//
// Every per-ISA translation unit includes this header, so it has no inline code and no STL: of an inline function the linker keeps any one
// copy, and one compiled with -mavx512f would run on machines without AVX-512.
#pragma once

#include <cstdint>

namespace bertfast::cpu {

struct bfloat16 {
  uint16_t bits;  // the upper half of a float's
};

enum class Activation : int { none, gelu, gelu_tanh, relu, silu, tanh, count };  // count: how many; no activation

// Number is float or bfloat16; sums, statistics and softmax are float for both.

// out = LayerNorm(word[ids] + type[types] + position[positions]) * weight + bias. Tables are [rows, hidden]. Word is uint8_t for an int8
// table, which lies in panels of word_width words, [panels, blocks, 16, word_width, 4], with scales [panels, groups, word_width].
template <class Number, class Word = Number>
struct EmbedLayerNormArgs {
  const int64_t* input_ids;     // [tokens]
  const int64_t* position_ids;  // [tokens]
  const int64_t* type_ids;      // [tokens], or null: type 0 everywhere
  const Word* word_table;
  const float* word_scales;  // of an int8 table, else null
  int64_t word_width;        // of an int8 table, else 0
  const Number *position_table, *type_table;
  int64_t word_rows, position_rows, type_rows;
  const Number *weight, *bias;  // [hidden]
  Number* out;                  // [tokens, hidden]
  int64_t tokens, hidden;
  float eps;
  char* quantized;  // null, or out once more as rows of the int8 product that reads it: see Int8QuantizeArgs; float only
};

// out = LayerNorm(x + residual) * weight + bias.
template <class Number>
struct AddLayerNormArgs {
  const Number* x;              // [rows, hidden]
  const Number* residual;       // [rows, hidden], or null
  const Number *weight, *bias;  // [hidden]
  Number* out;                  // [rows, hidden]; may be x
  int64_t rows, hidden;
  float eps;
  char* quantized;  // as in EmbedLayerNormArgs
};

// out = activation(x weight^T + bias).
template <class Number>
struct LinearArgs {
  const Number* x;       // [rows, inputs], rows x_stride apart
  const Number* weight;  // [features, inputs]
  const Number* bias;    // [features], or null
  Number* out;           // [rows, features], rows out_stride apart
  int64_t rows, inputs, features, x_stride, out_stride;
  Activation activation;
};

// Consecutive rows of a weight; null and 0 for none.
template <class Number>
struct WeightRows {
  const Number* rows;
  int64_t count;
};

// out = softmax(q k^T scale) v for every head of every sequence. Rows are [heads, head_size]; sequence b owns rows
// cu_seqlens[b] : cu_seqlens[b + 1]. causal: query i sees keys 0 .. i + keys - queries of its sequence (aligned at the end, as in
// flash-attn).
template <class Number>
struct VarlenAttentionArgs {
  const Number *q, *k, *v;  // rows q_stride, k_stride and v_stride apart
  Number* out;              // [queries, heads, head_size], contiguous
  int64_t q_stride, k_stride, v_stride;
  const int32_t *cu_seqlens_q, *cu_seqlens_k;  // [sequences + 1]
  int64_t sequences, heads, head_size;
  float scale;
  bool causal;
  bool bfloat16_products;  // q, k, v and the softmax weights may be rounded to bfloat16 before they are multiplied
  int64_t queries, keys;   // rows of q, and of k and v, which cu_seqlens must not exceed
};

// A KV cache [rows, heads, positions, head_size]: elements from one row, head and position to the next.
struct CacheStrides {
  int64_t key_row, key_head, key_position, value_row, value_head, value_position;
};

// keys[rows[t], :, positions[t]] = k[t], values likewise.
template <class Number>
struct WriteCacheArgs {
  const Number *k, *v;              // [tokens, heads, head_size], rows k_stride and v_stride apart
  Number *keys, *values;            // [cache_rows, heads, cache_positions, head_size]
  const int64_t *rows, *positions;  // [tokens]
  int64_t k_stride, v_stride;
  CacheStrides strides;
  int64_t tokens, heads, head_size, cache_rows, cache_positions;
};

// out = softmax(q k^T scale) v of single queries, each against a range of positions of one row of a KV cache.
template <class Number>
struct CachedAttentionArgs {
  const Number* q;              // [queries, heads, head_size], rows q_stride apart
  const Number *keys, *values;  // [cache_rows, heads, cache_positions, head_size]
  const int64_t* rows;          // [queries]: the cache row of each query
  const int64_t *first, *last;  // [queries]: it reads positions first .. last - 1; first null: from 0
  Number* out;                  // [queries, heads, head_size], contiguous
  int64_t q_stride;
  CacheStrides strides;
  int64_t queries, heads, head_size;
  float scale;
  int64_t cache_rows, cache_positions;
};

// out[t] = x[indices[t]], for rows of any type.
struct PackArgs {
  const char* x;           // [rows, row_bytes]
  const int64_t* indices;  // [tokens], each in [0, rows)
  char* out;               // [tokens, row_bytes]
  int64_t rows, tokens, row_bytes;
};

// out[indices[t]] = x[t]; every other row is `fill`.
template <class Number>
struct UnpackArgs {
  const Number* x;         // [tokens, columns]
  const int64_t* indices;  // [tokens], each in [0, rows), all different
  Number* out;             // [rows, columns]
  int64_t tokens, rows, columns;
  float fill;
};

// out[r] = the first column where row r is largest, as torch.argmax: NaN is larger than anything.
struct ArgmaxArgs {
  const float* scores;  // [rows, columns]
  int64_t* out;         // [rows]
  int64_t rows, columns;
};

// int8, as bertfast/ops/int8.py defines it. Inputs are rotated by a Hadamard transform, a block of 64 at a time, and a weight has a scale
// for each group of 128 inputs, two blocks; the last group may be one block. A quantized row is blocks * int8_block_bytes: the int8 of all
// blocks, then a float scale for each, which the two of a group may share, then for each the int32 that its sum of products starts with,
// -128 times the sum of its int8, since weights are stored plus 128.
constexpr int64_t hadamard_block = 64;
constexpr int64_t int8_block_bytes = hadamard_block + sizeof(float) + sizeof(int32_t);

struct Int8QuantizeArgs {
  const float* x;  // [rows, inputs], rows x_stride apart
  char* out;       // [rows, blocks * int8_block_bytes]
  int64_t inputs, blocks, x_stride, rows;
};

// out = activation(x weight^T + bias), for int8 x and weight.
struct Int8LinearArgs {
  const char* x;          // [rows, blocks * int8_block_bytes]
  const uint8_t* panels;  // weight [panels of 64 features, blocks, 16, 64, 4]
  const float* scales;    // [panels, groups, 64]
  const float* bias;      // [features], or null
  float* out;             // [rows, features], rows out_stride apart; or null
  char* quantized;        // null, or the result as inputs of the next product, out_blocks a row: two panels make a group
  int64_t blocks, features, out_stride, out_blocks;
  Activation activation;
  int64_t rows;
};

// How ops are cut into pieces: alike on every machine, because the order of a sum depends on it.
constexpr int64_t linear_rows = 384;     // most rows of a piece
constexpr int64_t attention_rows = 512;  // most queries of a piece
constexpr int64_t attention_keys = 128;  // keys of a tile
constexpr int64_t max_head_size = 256;

// Queries [first, last) of one head of one sequence, counted from the sequence's start.
struct AttentionPiece {
  int64_t sequence, head, first, last;
};

// A kernel computes a piece of an op on the calling thread; the cut into pieces and their threads change no bit of the result.
template <class Number>
struct KernelsOf {
  // Tokens [first, last). False if an id is outside its table, which is then not read.
  bool (*embed_layer_norm)(const EmbedLayerNormArgs<Number>&, int64_t first, int64_t last);
  // Rows [first, last).
  void (*add_layer_norm)(const AddLayerNormArgs<Number>&, int64_t first, int64_t last);
  // Rows [row0, row1), at most linear_rows, of columns [col0, col1). Prefetches `next`, the weights of the thread's next piece, whose rows
  // have as many inputs. scratch: linear_scratch floats.
  void (*linear)(const LinearArgs<Number>&, int64_t row0, int64_t row1, int64_t col0, int64_t col1, const WeightRows<Number>& next,
                 float* scratch);
  // A piece of at most attention_rows queries. Prefetches what `next` reads. scratch: attention_scratch floats.
  void (*varlen_attention)(const VarlenAttentionArgs<Number>&, const AttentionPiece& piece, const AttentionPiece& next, float* scratch);
  // The same for bfloat16_products: multiplies pairs of bfloat16 if the CPU can.
  void (*varlen_attention_bfloat16_products)(const VarlenAttentionArgs<Number>&, const AttentionPiece& piece, const AttentionPiece& next,
                                             float* scratch);
  // One query and head; scratch: as many floats as the query reads positions.
  void (*cached_attention)(const CachedAttentionArgs<Number>&, int64_t query, int64_t head, float* scratch);
};

struct Int8Kernels {
  int qmax;  // largest magnitude of a quantized input: 127, or 63 where two products are added in 16 bits
  // Groups [first, last), counted over all rows.
  void (*quantize)(const Int8QuantizeArgs&, int64_t first, int64_t last);
  // Rows [row0, row1) of panels [panel0, panel1): one panel, or the two that make a group of a quantized result.
  void (*linear)(const Int8LinearArgs&, int64_t row0, int64_t row1, int64_t panel0, int64_t panel1);
  // As KernelsOf::embed_layer_norm, with an int8 table of words.
  bool (*embed_layer_norm)(const EmbedLayerNormArgs<float, uint8_t>&, int64_t first, int64_t last);
};

struct Kernels {
  const char* isa;
  bool multiplies_bfloat16;  // else it widens bfloat16 to float first

  KernelsOf<float> of_float;
  KernelsOf<bfloat16> of_bfloat16;
  Int8Kernels of_int8;
  int64_t linear_scratch;
  int64_t attention_scratch;
};

}  // namespace bertfast::cpu
