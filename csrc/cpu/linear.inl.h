// out[m, n] = activation(sum over k of x[m, k] * weight[n, k], plus bias[n]): tiles of dot products along k.
//
// Both operands are read in torch's layout, row-major with k contiguous: nothing is packed, and no second copy of the weights exists. A
// tile's sums stay in registers, and their order depends on k alone, so a row has the same bits alone and in any batch, on any number of
// threads.
//
// Operands are float; or bfloat16 multiplied in pairs, where the CPU can; or else float rows of x, widened before the pass, and bfloat16
// weights, widened in the tile. Sums are float and rounded once, after the activation.
#pragma once

#include "activation.inl.h"
#include "approx_activation.inl.h"
#include "linear_pass.inl.h"
#include "linear_pipelined.inl.h"
#include "vec.inl.h"

namespace bertfast::cpu::BERTFAST_ISA_NAME {
namespace {

constexpr int64_t block_cols = 96;  // columns of weight that stay in L2 while all rows pass over them

// Floats along k in a pass: a tile's rows of x and weight stay in L1. Fewer for narrow vectors: long sums in few lanes lose precision.
constexpr int64_t block_depth = Vec::width < 8 ? 256 : 768;

constexpr int64_t few_rows = 48;                     // up to so many, all rows of x stay in cache while weights stream from memory
constexpr int64_t copied_stride = block_depth + 16;  // one cache line more than a pass, so that rows start in different cache sets
constexpr int64_t linear_scratch =
    linear_rows * block_cols + few_rows * copied_stride;  // floats: sums of bfloat16 results, and rows of x that are copied or widened

// Rows and columns of a tile.
struct WideTile {
  static constexpr int64_t rows = Vec::tile_rows, cols = tile_cols;
};
struct TallTile {  // all rows of a small batch: weights are read once, from memory, and L1 holds the rows of x beside them
  static constexpr int64_t rows = Vec::tall_rows, cols = Vec::tall_cols;
};

// Keeps `a` in a register from here on.
template <class Operand>
inline void pin_register([[maybe_unused]] Operand& a) {
#if defined(__x86_64__)
  asm("" : "+v"(a.v));
#endif
}

// GCC 12 keeps `sum` in memory, at half the speed, unless every loop over it has an unroll pragma; on AVX2 also if the tile is inlined.
template <int64_t rows, int64_t cols, bool prefetches, class X, class W>
__attribute__((noinline)) void linear_tile(const LinearPass<X, W>& at, const X* x, const W* weight, const float* start, float* out,
                                           PrefetchRows<W> prefetch) {
  using Operand = typename OperandsOf<X, W>::Type;
  constexpr int64_t line = 64 / sizeof(W);
  Vec sum[rows][tile_cols];
#pragma GCC unroll 8
  for (int64_t m = 0; m < rows; ++m)
#pragma GCC unroll 8
    for (int64_t c = 0; c < tile_cols; ++c) sum[m][c] = Vec::all(0.0f);

  for_each_block<Operand::width>(at.depth, [&](int64_t k, int64_t lanes) {
    if (prefetches && k % line == 0)
      for (int64_t c = 0; c < prefetch.rows; ++c) __builtin_prefetch(prefetch.weight + c * at.weight_stride + k, 0, 2);
    Operand w[cols];
#pragma GCC unroll 8
    for (int64_t c = 0; c < cols; ++c) w[c] = Operand::load(weight + c * at.weight_stride + k, lanes);
#pragma GCC unroll 8
    for (int64_t m = 0; m < rows; ++m) {
      Operand a = Operand::load(x + m * at.x_stride + k, lanes);
      if (cols == TallTile::cols && cols != WideTile::cols) pin_register(a);  // GCC 12 would reload it for each column
#pragma GCC unroll 8
      for (int64_t c = 0; c < cols; ++c) sum[m][c] = multiply_add(a, w[c], sum[m][c]);
    }
  });

#pragma GCC unroll 8
  for (int64_t m = 0; m < rows; ++m)
    store_quad(out + m * at.out_stride, Vec::sums(sum[m]) + load_quad(start + m * at.start_stride, cols), cols);
}

// The tile of `count` rows, 1 to `rows`, at (row, n).
template <int64_t rows, int64_t cols, bool prefetches, class X, class W>
void linear_tile_of_rows(const LinearPass<X, W>& at, int64_t count, int64_t row, int64_t n, PrefetchRows<W> prefetch) {
  if constexpr (rows > 1)
    if (count < rows) return linear_tile_of_rows<rows - 1, cols, prefetches>(at, count, row, n, prefetch);
  linear_tile<rows, cols, prefetches>(at, at.x + row * at.x_stride, at.weight + n * at.weight_stride, at.start + row * at.start_stride + n,
                                      at.out + row * at.out_stride + n, prefetch);
}

// Rows [row, bottom) and columns [n, end), at most one tile; fewer columns than a tile's one at a time.
template <class Tile, bool prefetches, class X, class W>
inline void linear_tile_at(const LinearPass<X, W>& at, int64_t row, int64_t bottom, int64_t n, int64_t end, PrefetchRows<W> prefetch) {
  if (end - n == Tile::cols) return linear_tile_of_rows<Tile::rows, Tile::cols, prefetches>(at, bottom - row, row, n, prefetch);
  for (; n < end; ++n) linear_tile_of_rows<Tile::rows, 1, false>(at, bottom - row, row, n, prefetch);
}

// Few rows: all of them for a tile's columns, then the next columns, which each tile prefetches a part of.
template <class Tile, class X, class W>
void linear_few_rows(const LinearPass<X, W>& at) {
  constexpr int64_t step = Tile::cols;
  const int64_t tiles = (at.rows + Tile::rows - 1) / Tile::rows;
  for (int64_t n = 0; n < at.cols; n += step) {
    const int64_t end = n + step < at.cols ? n + step : at.cols, left = end < at.cols ? at.cols - end : at.next_rows;
    const int64_t next = left < step ? left : step;
    const W* prefetch = end < at.cols ? at.weight + end * at.weight_stride : at.next_weight;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t from = next * tile / tiles, to = next * (tile + 1) / tiles;
      linear_tile_at<Tile, true>(at, at.rows * tile / tiles, at.rows * (tile + 1) / tiles, n, end,
                                 PrefetchRows<W>{prefetch + from * at.weight_stride, to - from});
    }
  }
}

// The same with pipelined tiles. Each half prefetches a row of weight, or one already in cache if none is left.
template <class X>
void linear_few_rows_pipelined(const LinearPass<X, X>& at) {
  const int64_t steps = at.cols / WideTile::cols, halves = 2 * ((at.rows + WideTile::rows - 1) / WideTile::rows);
  int64_t n = 0, half = 0;
  Pipelined<X, X>::template compute<1>(at, steps, [&] {
    if (half == halves) half = 0, n += WideTile::cols;
    const int64_t end = n + WideTile::cols, left = end < at.cols ? at.cols - end : at.next_rows,
                  next = left < WideTile::cols ? left : WideTile::cols;
    const int64_t row = next * half / halves;
    ++half;
    if (row == next * half / halves) return at.weight + n * at.weight_stride;
    return (end < at.cols ? at.weight + end * at.weight_stride : at.next_weight) + row * at.weight_stride;
  });
  if (steps * WideTile::cols < at.cols) linear_few_rows<WideTile>(columns_of_pass(at, steps * WideTile::cols));
}

// Copies rows of x, at most few_rows, that alias: a multiple of 4 KiB apart, they map to one set of L1 and evict each other.
template <class X, class W>
LinearPass<X, W> copy_aliased_rows(const LinearPass<X, W>& at, X* scratch_x) {
  constexpr int64_t size = sizeof(X), stride = copied_stride * static_cast<int64_t>(sizeof(float)) / size;
  if (at.x_stride * size % 4096 != 0 || at.rows < 4 || at.depth == 0) return at;
  for (int64_t m = 0; m < at.rows; ++m)
    __builtin_memcpy(scratch_x + m * stride, at.x + m * at.x_stride, static_cast<size_t>(at.depth * size));
  LinearPass<X, W> copied = at;
  copied.x = scratch_x;
  copied.x_stride = stride;
  return copied;
}

// Prefetches into L2 the given one of `parts` equal parts of each row of x.
template <class X, class W>
void prefetch_rows(const LinearPass<X, W>& at, int64_t part, int64_t parts) {
  const int64_t first = at.depth * part / parts, last = at.depth * (part + 1) / parts;
  for (int64_t m = 0; m < at.rows; ++m)
    for (int64_t k = first; k < last; k += 64 / sizeof(X)) prefetch(at.x + m * at.x_stride + k);
}

// Prefetches the next pass's weights into L2 a few lines per tile; fetched in one burst they would be DRAM-bandwidth bound.
template <class X, class W>
class NextWeightsPrefetcher {
 public:
  NextWeightsPrefetcher(const LinearPass<X, W>& at, int64_t tiles) : at_(at) {
    const int64_t lines = (at.depth + line - 1) / line * at.next_rows;
    lines_per_call_ = (lines + tiles - 1) / tiles;
  }
  void fetch() {
    for (int64_t i = 0; i < lines_per_call_ && row_ < at_.next_rows; ++i) {
      prefetch(at_.next_weight + row_ * at_.weight_stride + k_);
      k_ += line;
      if (k_ >= at_.depth) k_ = 0, ++row_;
    }
  }

 private:
  static constexpr int64_t line = 64 / sizeof(W);
  const LinearPass<X, W>& at_;
  int64_t lines_per_call_, row_ = 0, k_ = 0;
};

// Many rows: all columns of the block for one tile's rows, which stay in L1, then the next tile's rows. Rows that alias are copied just
// before they are used, with their latency exposed, so they are prefetched during the tile before.
template <class X, class W>
void linear_many_rows(const LinearPass<X, W>& all, X* scratch_x) {
  const int64_t tiles = (all.rows + WideTile::rows - 1) / WideTile::rows, steps = (all.cols + WideTile::cols - 1) / WideTile::cols;
  const auto first = [&](int64_t tile) { return all.rows * tile / tiles; };  // tiles of nearly equal height
  NextWeightsPrefetcher<X, W> weights(all, tiles * steps);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const LinearPass<X, W> at = copy_aliased_rows(rows_of_pass(all, first(tile), first(tile + 1)), scratch_x);
    const LinearPass<X, W> next_tile = rows_of_pass(all, first(tile + 1), tile + 1 < tiles ? first(tile + 2) : all.rows);
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t n = step * WideTile::cols, end = n + WideTile::cols < at.cols ? n + WideTile::cols : at.cols, left = at.cols - end;
      if (at.x == scratch_x) prefetch_rows(next_tile, step, steps);
      weights.fetch();
      const PrefetchRows<W> next = {at.weight + end * at.weight_stride, left < WideTile::cols ? left : WideTile::cols};
      linear_tile_at<WideTile, Vec::prefetch_in_tile>(at, 0, at.rows, n, end, next);
    }
  }
}

// The same with pipelined tiles. Only the first tile's rows find the block's weights outside L2. Later halves prefetch a row each of what
// comes next: of x if it will be copied, else of the next pass's weights, or a row already in cache if none is left.
template <class X>
void linear_many_rows_pipelined(const LinearPass<X, X>& all, X* scratch_x) {
  const int64_t tiles = (all.rows + WideTile::rows - 1) / WideTile::rows, steps = all.cols / WideTile::cols;
  const auto first = [&](int64_t tile) { return all.rows * tile / tiles; };
  const int64_t halves = 2 * steps * (tiles - 1);
  int64_t past = 0;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const LinearPass<X, X> at = copy_aliased_rows(rows_of_pass(all, first(tile), first(tile + 1)), scratch_x);
    const LinearPass<X, X> next_tile = rows_of_pass(all, first(tile + 1), tile + 1 < tiles ? first(tile + 2) : all.rows);
    int64_t half = 0;
    if (tile == 0) {
      Pipelined<X, X>::template compute<2>(at, steps, [&] {
        ++half;
        return at.weight + (2 * half + 2 < at.cols ? 2 * half + 2 : 0) * at.weight_stride;
      });
    } else {
      const int64_t rows = at.x == scratch_x ? next_tile.rows : 0;
      Pipelined<X, X>::template compute<1>(at, steps, [&] {
        if (half < rows) return next_tile.x + half++ * at.x_stride;
        const int64_t row = all.next_rows * past / halves;
        ++past;
        return row < all.next_rows * past / halves ? all.next_weight + row * at.weight_stride : at.weight;
      });
    }
  }
  if (steps * WideTile::cols < all.cols) linear_many_rows(columns_of_pass(all, steps * WideTile::cols), scratch_x);
}

// scratch_x: few_rows rows of copied_stride floats.
template <class X, class W>
void linear_pass(const LinearPass<X, W>& at, X* scratch_x) {
  if (at.rows > WideTile::rows && at.rows <= TallTile::rows) return linear_few_rows<TallTile>(copy_aliased_rows(at, scratch_x));
  if constexpr (Pipelined<X, W>::possible) {
    if (at.rows > few_rows) return linear_many_rows_pipelined(at, scratch_x);
    if (at.rows > WideTile::rows) return linear_few_rows_pipelined(copy_aliased_rows(at, scratch_x));
  }
  at.rows > few_rows ? linear_many_rows(at, scratch_x) : linear_few_rows<WideTile>(copy_aliased_rows(at, scratch_x));
}

// The same on rows of x widened to float, at most few_rows at a time.
inline void linear_pass_widened(const LinearPass<bfloat16, bfloat16>& at, float* scratch_x) {
  for (int64_t row = 0; row < at.rows; row += few_rows) {
    const int64_t rows = row + few_rows < at.rows ? few_rows : at.rows - row;
    for (int64_t m = 0; m < rows; ++m)
      for_each_block(at.depth, [&](int64_t k, int64_t lanes) {
        Vec::load(at.x + (row + m) * at.x_stride + k, lanes).store(scratch_x + m * copied_stride + k, lanes);
      });
    const LinearPass<bfloat16, bfloat16> some = rows_of_pass(at, row, row + rows);
    const bool last = row + rows == at.rows;
    const LinearPass<float, bfloat16> wide = {
        scratch_x,     at.weight, some.start, some.out, copied_stride,  at.weight_stride,       at.start_stride,
        at.out_stride, rows,      at.cols,    at.depth, at.next_weight, last ? at.next_rows : 0};
    linear_pass(wide, scratch_x);  // copied_stride does not alias: no second copy
  }
}

// Where a block's sums accumulate between passes: in the result, or in scratch if that is bfloat16.
inline float* sums_of(float* out, float*) { return out; }
inline float* sums_of(bfloat16*, float* scratch) { return scratch; }

// Inputs of a pass; depends on the row's length alone, as its bits must. Pipelined tiles read their weights from L1 twice: if there are
// several passes, shorter ones keep the weights there, and their reductions cost little.
template <class Number>
int64_t pass_depth(int64_t inputs) {
  constexpr int64_t most = multiplies_bfloat16 ? block_depth * static_cast<int64_t>(sizeof(float) / sizeof(Number)) : block_depth;
  return Pipelined<Number, Number>::possible && inputs > most ? most / 3 * 2 : most;
}

template <class Number>
void linear(const LinearArgs<Number>& op, int64_t row0, int64_t row1, int64_t col0, int64_t col1, const WeightRows<Number>& next,
            float* scratch) {
  constexpr bool in_place = sizeof(Number) == sizeof(float);
  const int64_t most = pass_depth<Number>(op.inputs);
  const int64_t rows = row1 - row0;
  for (int64_t n0 = col0; n0 < col1; n0 += block_cols) {
    const int64_t cols = n0 + block_cols < col1 ? block_cols : col1 - n0;
    Number* out = op.out + row0 * op.out_stride + n0;
    float* sums = sums_of(out, scratch);
    const int64_t stride = in_place ? op.out_stride : block_cols;
    alignas(64) float bias[block_cols];
    for_each_block(
        cols, [&](int64_t n, int64_t lanes) { (op.bias ? Vec::load(op.bias + n0 + n, lanes) : Vec::all(0.0f)).store(bias + n, lanes); });
    const Number *x = op.x + row0 * op.x_stride, *weight = op.weight + n0 * op.inputs;
    for (int64_t k = 0; k == 0 || k < op.inputs; k += most) {  // once even without inputs, for the bias
      const int64_t depth = k + most < op.inputs ? most : op.inputs - k;
      const bool last = k + most >= op.inputs;
      const WeightRows<Number> then = !last                    ? WeightRows<Number>{weight + k + most, cols}
                                      : n0 + block_cols < col1 ? WeightRows<Number>{weight + block_cols * op.inputs, col1 - n0 - block_cols}
                                                               : next;
      LinearPass<Number, Number> at = {x + k,  weight + k, sums, sums,  op.x_stride, op.inputs, stride,
                                       stride, rows,       cols, depth, then.rows,   then.count};
      if (k == 0) at.start = bias, at.start_stride = 0;
      float* scratch_x = scratch + linear_rows * block_cols;
      if constexpr (in_place || multiplies_bfloat16)
        linear_pass(at, reinterpret_cast<Number*>(scratch_x));
      else
        linear_pass_widened(at, scratch_x);
    }
    for (int64_t m = 0; m < rows; ++m) {
      if constexpr (in_place) {
        activate(op.activation, sums + m * stride, cols);
      } else {
        approx_activate(op.activation, sums + m * stride, cols);
        for_each_block(
            cols, [&](int64_t n, int64_t lanes) { Vec::load(sums + m * stride + n, lanes).store(out + m * op.out_stride + n, lanes); });
      }
    }
  }
}

}  // namespace
}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
