// A forward as a flat list of ops, recorded once from the Python graph and replayed in one call: one crossing of the language
// border, one parallel region, a barrier between ops.
//
// A plan knows no batch. Row counts are symbols (the tokens of a batch, its sequences, its cells) whose values come with each replay,
// and so do the addresses of inputs and outputs (slots). Weights are constants: their addresses, which the recorder checks before
// every replay. What an op leaves for a later one lies in an arena; places in it are columns, so that they hold for any row count.
#pragma once

#include <cstdint>
#include <variant>
#include <vector>

#include "../bind.h"
#include "../cpu/kernels.h"

namespace bertfast::plan {

struct Ref {
  enum class Kind : int { none, constant, slot, buffer };
  Kind kind = Kind::none;
  int64_t value = 0;   // an address, or the index of a slot or a buffer
  int64_t column = 0;  // numbers from the start of the row
};

struct Buffer {
  int64_t rows;     // which row count
  int64_t place;    // its first column in the arena of that row count
  int64_t columns;  // its own width
};

// `quantized`, where an op has it and it is not none: its rows once more, as the int8 product that reads them wants them.

struct Embed {
  Ref input_ids, words, word_scales, position_ids, positions, type_ids, types, weight, bias, out, quantized;  // scales: words are int8
  int64_t word_width;  // of int8 words: how many in a panel
  int64_t word_rows;   // of a constant table; where the table is a slot, the row count named by rows
  int64_t position_rows, type_rows, rows, hidden;
  float eps;
};

struct AddLayerNorm {
  Ref x, residual, weight, bias, out, quantized;
  int64_t rows, hidden;
  float eps;
};

struct Part {
  Ref weight, bias;
  int64_t features;
};

struct Linear {
  Ref x, out;
  std::vector<Part> parts;
  int64_t rows, inputs, x_stride;
  cpu::Activation activation;
};

struct Int8Rows {
  Ref x, out;
  int64_t rows, inputs, x_stride;
};

struct Int8Part {
  Ref panels, scales, bias;
  int64_t features;
};

struct Int8Linear {
  Ref x, out, quantized;  // x: quantized rows; out none: nobody reads it but by `quantized`
  std::vector<Int8Part> parts;
  int64_t rows, inputs;
  cpu::Activation activation;
};

struct Attend {
  Ref q, k, v, cu_seqlens_q, cu_seqlens_k, out;
  int64_t q_stride, k_stride, v_stride, q_rows, k_rows, sequences, heads, head_size;  // q_rows, k_rows, sequences: row counts
  float scale;
  bool causal, bfloat16_products;
};

struct Pack {
  Ref x, indices, out;
  int64_t from_rows, rows, columns;
};

struct Unpack {
  Ref x, indices, out;
  int64_t from_rows, rows, columns;
  float fill;
};

// A KV cache: constants of a plan that lives as long as they do. [cache_rows, heads, cells, head_size], strides of the first three.
struct CacheShape {
  int64_t cache_rows, heads, cells, head_size;
  cpu::CacheStrides strides;
};

struct WriteCache {
  Ref k, v, keys, values, cache_row, cell;
  int64_t k_stride, v_stride, rows;
  CacheShape shape;
};

struct AttendCache {
  Ref q, keys, values, cache_row, first, last, out;
  int64_t q_stride, rows;
  float scale;
  CacheShape shape;
};

using Node = std::variant<Embed, AddLayerNorm, Linear, Int8Rows, Int8Linear, Attend, Pack, Unpack, WriteCache, AttendCache>;

// Of float, or of bfloat16 throughout (then without the ops of int8).
class Plan {
 public:
  explicit Plan(bool bfloat16 = false) : bfloat16_(bfloat16) {}
  int64_t add_buffer(const Buffer& buffer);
  void add(Node node) { nodes_.push_back(std::move(node)); }
  int64_t size() const { return static_cast<int64_t>(nodes_.size()); }

  // counts: the value of each row count; slots: the address of each input and output, all of which must stay valid meanwhile.
  // Throws std::invalid_argument for an id outside of its table or boundaries that make no sense.
  void run(const std::vector<int64_t>& counts, const std::vector<Address>& slots) const;

 private:
  template <class Number>
  void run_as(const std::vector<int64_t>& counts, const std::vector<Address>& slots) const;

  bool bfloat16_;
  std::vector<Buffer> buffers_;
  std::vector<int64_t> arena_columns_;  // by row count
  std::vector<Node> nodes_;
};

}  // namespace bertfast::plan
