// The int8 product as ops, cut into items that the pool hands out (parallel.h).
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"

namespace bertfast::cpu {

constexpr int64_t int8_groups(int64_t inputs) { return (inputs + int8_group - 1) / int8_group; }
constexpr int64_t int8_spans(int64_t groups) { return (groups + 1) / 2; }
constexpr int64_t int8_row_bytes(int64_t inputs) { return int8_groups(inputs) * int8_group_bytes; }

// Quantizes rows that nobody quantized where they were made.
struct Int8QuantizeOp {
  const Kernels& kernels;
  Int8Quantize args;
  int64_t rows;

  int64_t items() const;
  void run(int64_t item) const;
};

// One x, one or several weights, their outputs side by side in one matrix.
class Int8LinearOp {
 public:
  Int8LinearOp(const Kernels& kernels, std::vector<Int8Linear> parts, int64_t rows);
  int64_t items() const { return row_blocks_ * column_blocks_; }
  void run(int64_t item) const;

 private:
  const Kernels& kernels_;
  int64_t blocks_of(const Int8Linear& part) const { return (int8_groups(part.features) + block_panels_ - 1) / block_panels_; }

  std::vector<Int8Linear> parts_;
  int64_t rows_, block_panels_, column_blocks_, row_blocks_;
};

}  // namespace bertfast::cpu
