// Whole ops of float or bfloat16, cut into items that the pool hands out (parallel.h). The cut may depend on sizes and on the number of
// threads: no kernel lets it reach the bits.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace bertfast::cpu {

// What a row-wise op may do with rows it has just made: quantize them for the int8 product that reads them. out null: nothing.
using Quantize = Int8Quantize;

template <class Number, class Word = Number>
struct EmbeddingOpOf {
  EmbeddingOpOf(const Kernels& kernels, const EmbeddingOf<Number, Word>& args, const Quantize& then = {})
      : kernels(kernels), args(args), then(then) {}

  const Kernels& kernels;
  EmbeddingOf<Number, Word> args;
  Quantize then;
  mutable std::atomic<bool> bad_id{false};

  int64_t items() const;
  void run(int64_t item) const;
  // After the run: throws std::invalid_argument if an id was outside of its table. bad: one was, found by an op on some of the tokens.
  void check(bool bad = false) const;
};

template <class Number>
struct LayerNormOpOf {
  const Kernels& kernels;
  LayerNormOf<Number> args;
  Quantize then = {};

  int64_t items() const;
  void run(int64_t item) const;
};

// One x, one or several weights, their outputs side by side in one matrix.
template <class Number>
class LinearOpOf {
 public:
  LinearOpOf(const Kernels& kernels, std::vector<LinearOf<Number>> parts, int threads);
  int64_t items() const { return row_blocks_ * column_blocks_; }
  void run(int64_t item) const;

 private:
  struct Piece {
    const LinearOf<Number>& part;
    int64_t row0, row1, col0, col1;
  };
  Piece piece(int64_t item) const;

  const Kernels& kernels_;
  std::vector<LinearOf<Number>> parts_;
  int threads_;
  std::vector<int64_t> first_block_;  // of each part, and their sum
  int64_t block_rows_, block_columns_, row_blocks_, column_blocks_;
};

template <class Number>
class AttentionOpOf {
 public:
  AttentionOpOf(const Kernels& kernels, const AttentionOf<Number>& args, int threads);
  int64_t items() const { return static_cast<int64_t>(pieces_.size()) * args_.heads; }
  void run(int64_t item) const;

 private:
  struct Piece {
    int32_t sequence, first, last;
    int64_t work;
  };
  AttentionPiece piece(int64_t item) const;

  const Kernels& kernels_;
  AttentionOf<Number> args_;
  int threads_;
  std::vector<Piece> pieces_;  // the most work first, so that the cores finish together
};

// Rows of any kind, moved by bytes.
struct PackOp {  // out[t] = x[indices[t]]
  const char* x;
  const int64_t* indices;
  char* out;
  int64_t tokens, row_bytes;

  int64_t items() const;
  void run(int64_t item) const;
};

// out[indices[t]] = x[t], every other row `fill`. Indices that ascend are filled and scattered in one pass.
template <class Number>
struct UnpackOpOf {
  const Number* x;
  const int64_t* indices;
  Number* out;
  int64_t tokens, columns, rows;
  Number fill;
  bool ascending;

  int64_t items() const;
  void run(int64_t item) const;
};

using EmbeddingOp = EmbeddingOpOf<float>;
using Int8EmbeddingOp = EmbeddingOpOf<float, uint8_t>;
using LayerNormOp = LayerNormOpOf<float>;
using LinearOp = LinearOpOf<float>;
using AttentionOp = AttentionOpOf<float>;
using UnpackOp = UnpackOpOf<float>;

// x as a number of the second's type, to nearest, ties to even.
float rounded(float x, float);
bfloat16 rounded(float x, bfloat16);

// Throws std::invalid_argument unless every index is in [0, rows). Returns whether they ascend.
bool check_indices(const int64_t* indices, int64_t count, int64_t rows, const char* op);

// Throws std::invalid_argument unless bounds, [sequences + 1], ascend from 0 to at most `rows`.
void check_boundaries(const char* name, const int32_t* bounds, int64_t sequences, int64_t rows);

}  // namespace bertfast::cpu
