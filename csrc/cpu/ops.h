// Whole ops, each cut into items that the thread pool hands out (parallel.h); <op>.cpp holds the cut of an op, <op>.inl.h its kernel. The
// cut may depend on sizes and on the number of threads: no kernel lets it reach the bits.
//
// Every class is constructed as Op(kernels, Op::Args, threads) and has items() and run(item). What only the data can tell (indices,
// boundaries) the constructor checks, before anything else reads it: it throws std::invalid_argument. sequences_independent: a row of the
// result depends on rows of its own sequence alone, so that a plan may compute some sequences apart from the others (plan/bands.h).
#pragma once

#include <atomic>
#include <cstdint>

#include "../inline_vector.h"
#include "kernels.h"

namespace bertfast::cpu {

template <class Number, class Word = Number>
class EmbedLayerNormOp {
 public:
  using Args = EmbedLayerNormArgs<Number, Word>;
  static constexpr bool sequences_independent = true;

  EmbedLayerNormOp(const Kernels& kernels, const Args& args, int /*threads*/) : kernels_(kernels), args_(args) {}
  int64_t items() const;
  void run(int64_t item) const;

  bool bad_id() const { return bad_id_.load(std::memory_order_relaxed); }
  // After the run: throws std::invalid_argument, naming the id, if one was outside its table, here or (elsewhere) in an op on some of the
  // same tokens.
  void check_ids(bool elsewhere = false) const;

 private:
  const Kernels& kernels_;
  Args args_;
  mutable std::atomic<bool> bad_id_{false};
};

template <class Number>
class AddLayerNormOp {
 public:
  using Args = AddLayerNormArgs<Number>;
  static constexpr bool sequences_independent = true;

  AddLayerNormOp(const Kernels& kernels, const Args& args, int /*threads*/) : kernels_(kernels), args_(args) {}
  int64_t items() const;
  void run(int64_t item) const;

 private:
  const Kernels& kernels_;
  Args args_;
};

// linear and linear_concat: one x, one or several weights, their outputs side by side in one matrix.
template <class Number>
class LinearOp {
 public:
  using Args = InlineVector<LinearArgs<Number>, 3>;  // Q, K and V
  static constexpr bool sequences_independent = true;

  LinearOp(const Kernels& kernels, Args parts, int threads);
  int64_t items() const { return row_blocks_ * column_blocks_; }
  void run(int64_t item) const;

 private:
  struct Piece {
    const LinearArgs<Number>& part;
    int64_t row0, row1, col0, col1;
  };
  Piece piece(int64_t item) const;

  const Kernels& kernels_;
  Args parts_;
  int threads_;
  InlineVector<int64_t, 4> first_block_;  // of each part, then the number of all
  int64_t block_rows_, block_columns_, row_blocks_, column_blocks_;
};

template <class Number>
class VarlenAttentionOp {
 public:
  using Args = VarlenAttentionArgs<Number>;
  static constexpr bool sequences_independent = true;

  VarlenAttentionOp(const Kernels& kernels, const Args& args, int threads);
  int64_t items() const { return static_cast<int64_t>(pieces_.size()) * args_.heads; }
  void run(int64_t item) const;

 private:
  struct Piece {
    int32_t sequence, first, last;
    int64_t work;
  };
  AttentionPiece piece(int64_t item) const;

  const Kernels& kernels_;
  Args args_;
  int threads_;
  InlineVector<Piece, 4> pieces_;  // most work first, so that threads finish together
};

template <class Number>
class WriteCacheOp {
 public:
  using Args = WriteCacheArgs<Number>;
  static constexpr bool sequences_independent = false;

  WriteCacheOp(const Kernels&, const Args& args, int threads);
  int64_t items() const;
  void run(int64_t item) const;

 private:
  Args args_;
  int64_t tokens_per_item_;
};

template <class Number>
class CachedAttentionOp {
 public:
  using Args = CachedAttentionArgs<Number>;
  static constexpr bool sequences_independent = false;

  CachedAttentionOp(const Kernels& kernels, const Args& args, int threads);
  int64_t items() const { return args_.queries * args_.heads; }
  void run(int64_t item) const;

 private:
  const Kernels& kernels_;
  Args args_;
  int64_t longest_range_ = 0;
};

class PackOp {
 public:
  using Args = PackArgs;
  static constexpr bool sequences_independent = false;

  PackOp(const Kernels&, const Args& args, int threads);
  int64_t items() const;
  void run(int64_t item) const;

 private:
  Args args_;
};

template <class Number>
class UnpackOp {
 public:
  using Args = UnpackArgs<Number>;
  static constexpr bool sequences_independent = false;

  UnpackOp(const Kernels&, const Args& args, int threads);
  int64_t items() const;
  void run(int64_t item) const;

 private:
  Args args_;
  Number fill_;
  bool ascending_;  // then rows are filled and scattered in one pass
};

// On our own threads: torch's would spin on after its argmax and slow the next step down.
class ArgmaxOp {
 public:
  using Args = ArgmaxArgs;

  ArgmaxOp(const Kernels&, const Args& args, int threads);
  int64_t items() const { return args_.rows; }
  void run(int64_t row) const;

 private:
  Args args_;
};

// Quantizes rows that the op that made them did not quantize.
class Int8QuantizeOp {
 public:
  using Args = Int8QuantizeArgs;
  static constexpr bool sequences_independent = true;

  Int8QuantizeOp(const Kernels& kernels, const Args& args, int /*threads*/) : kernels_(kernels), args_(args) {}
  int64_t items() const;
  void run(int64_t item) const;

 private:
  const Kernels& kernels_;
  Args args_;
};

// One x, one or several weights, their outputs side by side in one matrix.
class Int8LinearOp {
 public:
  using Args = InlineVector<Int8LinearArgs, 3>;
  static constexpr bool sequences_independent = true;

  Int8LinearOp(const Kernels& kernels, Args parts, int threads);
  int64_t items() const { return row_blocks_ * column_blocks_; }
  void run(int64_t item) const;

 private:
  int64_t column_blocks(const Int8LinearArgs& part) const;

  const Kernels& kernels_;
  Args parts_;
  int64_t block_panels_, column_blocks_, row_blocks_;
};

constexpr int64_t hadamard_blocks(int64_t inputs) { return (inputs + hadamard_block - 1) / hadamard_block; }
constexpr int64_t int8_groups(int64_t blocks) { return (blocks + 1) / 2; }
constexpr int64_t int8_row_bytes(int64_t inputs) { return hadamard_blocks(inputs) * int8_block_bytes; }

// x in the second argument's type, to nearest, ties to even.
float rounded(float x, float);
bfloat16 rounded(float x, bfloat16);

}  // namespace bertfast::cpu
