// out[m, n] = activation(sum over k of x[m, k] * weight[n, k], plus bias[n]): tiles of dot products along k.
//
// Both operands lie as torch keeps them, row-major with k contiguous, so nothing is packed and no second copy of the
// weights exists. A tile's sums stay in registers, and their order depends on k alone: a row gives the same bits alone and
// in any batch, on any number of threads.
//
// Three kinds of operands: float; bfloat16 multiplied as it is, where the CPU can; and elsewhere bfloat16 weights widened in
// the tile, for rows of x that were widened before. Sums are float throughout and rounded once, after the activation.
#pragma once

#include "coarse_activate.inl.h"
#include "linear_in_flight.inl.h"
#include "linear_pass.h"
#include "math.inl.h"
#include "vec.h"

namespace bertfast::cpu::BERTFAST_ISA_NAME {
namespace {

constexpr int64_t block_cols = 96;  // columns of weight that stay in L2 while all rows pass

// k at a time, of float: a tile's rows of x and weight stay in L1. Of narrow vectors fewer: long sums in few lanes lose digits.
constexpr int64_t block_depth = Vec::width < 8 ? 256 : 768;

constexpr int64_t few_rows = 48;                   // up to here a column's rows of x stay in cache, and weights come from memory
constexpr int64_t wide_stride = block_depth + 16;  // a cache line more than the depth: rows start in different sets
constexpr int64_t linear_scratch = linear_rows * block_cols + few_rows * wide_stride;  // floats: bfloat16's sums, and x widened

// Rows and columns of a tile.
struct Wide {
  static constexpr int64_t rows = Vec::tile_rows, cols = tile_cols;
};
struct Tall {  // all rows of a small batch: weights are read once as they come from memory, and the rows of x fit into L1 beside them
  static constexpr int64_t rows = Vec::tall_rows, cols = Vec::tall_cols;
};

// In a register from here on.
template <class Operand>
inline void hold([[maybe_unused]] Operand& a) {
#if defined(__x86_64__)
  asm("" : "+v"(a.v));
#endif
}

// GCC 12 keeps `sum` in memory, at half the speed, unless every loop over it is unrolled by name; and, on
// AVX2, where the tile is inlined among its callers' loops.
template <int64_t rows, int64_t cols, bool fetch, class X, class W>
__attribute__((noinline)) void linear_tile(const LinearPass<X, W>& at, const X* x, const W* weight, const float* start, float* out,
                                           Ahead<W> ahead) {
  using Operand = typename OperandsOf<X, W>::Type;
  constexpr int64_t line = 64 / sizeof(W);
  Vec sum[rows][tile_cols];
#pragma GCC unroll 8
  for (int64_t m = 0; m < rows; ++m)
#pragma GCC unroll 8
    for (int64_t c = 0; c < tile_cols; ++c) sum[m][c] = Vec::all(0.0f);

  for_each_block<Operand::width>(at.depth, [&](int64_t k, int64_t lanes) {
    if (fetch && k % line == 0)
      for (int64_t c = 0; c < ahead.rows; ++c) __builtin_prefetch(ahead.weight + c * at.weight_stride + k, 0, 2);
    Operand w[cols];
#pragma GCC unroll 8
    for (int64_t c = 0; c < cols; ++c) w[c] = Operand::load(weight + c * at.weight_stride + k, lanes);
#pragma GCC unroll 8
    for (int64_t m = 0; m < rows; ++m) {
      Operand a = Operand::load(x + m * at.x_stride + k, lanes);
      if (cols == Tall::cols && cols != Wide::cols) hold(a);  // GCC 12 would load it again for each column
#pragma GCC unroll 8
      for (int64_t c = 0; c < cols; ++c) sum[m][c] = multiply_add(a, w[c], sum[m][c]);
    }
  });

#pragma GCC unroll 8
  for (int64_t m = 0; m < rows; ++m)
    store_quad(out + m * at.out_stride, Vec::sums(sum[m]) + load_quad(start + m * at.start_stride, cols), cols);
}

// `count` rows (1 .. rows) of `cols` columns.
template <int64_t rows, int64_t cols, bool fetch, class X, class W>
void linear_some_rows(const LinearPass<X, W>& at, int64_t count, int64_t row, int64_t n, Ahead<W> ahead) {
  if constexpr (rows > 1)
    if (count < rows) return linear_some_rows<rows - 1, cols, fetch>(at, count, row, n, ahead);
  linear_tile<rows, cols, fetch>(at, at.x + row * at.x_stride, at.weight + n * at.weight_stride, at.start + row * at.start_stride + n,
                                 at.out + row * at.out_stride + n, ahead);
}

// Columns [n, end), at most a tile's, of rows [row, bottom), at most a tile's.
template <class Tile, bool fetch, class X, class W>
inline void linear_corner(const LinearPass<X, W>& at, int64_t row, int64_t bottom, int64_t n, int64_t end, Ahead<W> ahead) {
  if (end - n == Tile::cols) return linear_some_rows<Tile::rows, Tile::cols, fetch>(at, bottom - row, row, n, ahead);
  for (; n < end; ++n) linear_some_rows<Tile::rows, 1, false>(at, bottom - row, row, n, ahead);
}

// Few rows: a few columns at a time for all of them, while the next columns come from memory, a share with each tile.
template <class Tile, class X, class W>
void linear_few(const LinearPass<X, W>& at) {
  constexpr int64_t step = Tile::cols;
  const int64_t tiles = (at.rows + Tile::rows - 1) / Tile::rows;
  for (int64_t n = 0; n < at.cols; n += step) {
    const int64_t end = n + step < at.cols ? n + step : at.cols, left = end < at.cols ? at.cols - end : at.soon_rows;
    const int64_t next = left < step ? left : step;
    const W* ahead = end < at.cols ? at.weight + end * at.weight_stride : at.soon;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t from = next * tile / tiles, to = next * (tile + 1) / tiles;
      linear_corner<Tile, true>(at, at.rows * tile / tiles, at.rows * (tile + 1) / tiles, n, end,
                                Ahead<W>{ahead + from * at.weight_stride, to - from});
    }
  }
}

// The same with two tiles in flight. A half fetches a row of weight, or one that is there.
template <class X>
void linear_few_in_flight(const LinearPass<X, X>& at) {
  const int64_t steps = at.cols / Wide::cols, halves = 2 * ((at.rows + Wide::rows - 1) / Wide::rows);
  int64_t n = 0, half = 0;
  InFlight<X, X>::template compute<1>(at, steps, [&] {
    if (half == halves) half = 0, n += Wide::cols;
    const int64_t end = n + Wide::cols, left = end < at.cols ? at.cols - end : at.soon_rows, next = left < Wide::cols ? left : Wide::cols;
    const int64_t row = next * half / halves;
    ++half;
    if (row == next * half / halves) return at.weight + n * at.weight_stride;
    return (end < at.cols ? at.weight + end * at.weight_stride : at.soon) + row * at.weight_stride;
  });
  if (steps * Wide::cols < at.cols) linear_few<Wide>(columns_from(at, steps * Wide::cols));
}

// Rows that lie a multiple of 4 KiB apart fall into one set of L1 and push each other out. At most few_rows are copied to `room`.
template <class X, class W>
LinearPass<X, W> apart(const LinearPass<X, W>& at, X* room) {
  constexpr int64_t size = sizeof(X), stride = wide_stride * static_cast<int64_t>(sizeof(float)) / size;
  if (at.x_stride * size % 4096 != 0 || at.rows < 4 || at.depth == 0) return at;
  for (int64_t m = 0; m < at.rows; ++m) __builtin_memcpy(room + m * stride, at.x + m * at.x_stride, static_cast<size_t>(at.depth * size));
  LinearPass<X, W> copied = at;
  copied.x = room;
  copied.x_stride = stride;
  return copied;
}

// Fetches a part of each row of x into L2, the part'th of `parts`.
template <class X, class W>
void fetch_rows(const LinearPass<X, W>& at, int64_t part, int64_t parts) {
  const int64_t first = at.depth * part / parts, last = at.depth * (part + 1) / parts;
  for (int64_t m = 0; m < at.rows; ++m)
    for (int64_t k = first; k < last; k += 64 / sizeof(X)) prefetch(at.x + m * at.x_stride + k);
}

// Fetches the weights of the next pass into L2, a share of them with every tile: all at once, when its first rows need them, they would
// come at no more than what memory gives.
template <class X, class W>
class Soon {
 public:
  Soon(const LinearPass<X, W>& at, int64_t tiles) : at_(at) {
    const int64_t lines = (at.depth + line - 1) / line * at.soon_rows;
    share_ = (lines + tiles - 1) / tiles;
  }
  void fetch() {
    for (int64_t i = 0; i < share_ && row_ < at_.soon_rows; ++i) {
      prefetch(at_.soon + row_ * at_.weight_stride + k_);
      k_ += line;
      if (k_ >= at_.depth) k_ = 0, ++row_;
    }
  }

 private:
  static constexpr int64_t line = 64 / sizeof(W);
  const LinearPass<X, W>& at_;
  int64_t share_, row_ = 0, k_ = 0;
};

// Many rows: all columns of the block for one tile's rows, which stay in L1, then the next tile's. Rows that collide are copied as they
// come, and nothing would hide their way from memory then: they are fetched while the tile before them is computed.
template <class X, class W>
void linear_many(const LinearPass<X, W>& all, X* room) {
  const int64_t tiles = (all.rows + Wide::rows - 1) / Wide::rows, steps = (all.cols + Wide::cols - 1) / Wide::cols;
  const auto first = [&](int64_t tile) { return all.rows * tile / tiles; };  // tiles of nearly the same height
  Soon<X, W> weights(all, tiles * steps);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const LinearPass<X, W> at = apart(some_rows(all, first(tile), first(tile + 1)), room);
    const LinearPass<X, W> soon = some_rows(all, first(tile + 1), tile + 1 < tiles ? first(tile + 2) : all.rows);
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t n = step * Wide::cols, end = n + Wide::cols < at.cols ? n + Wide::cols : at.cols, left = at.cols - end;
      if (at.x == room) fetch_rows(soon, step, steps);
      weights.fetch();
      const Ahead<W> next = {at.weight + end * at.weight_stride, left < Wide::cols ? left : Wide::cols};
      linear_corner<Wide, Vec::room_to_prefetch>(at, 0, at.rows, n, end, next);
    }
  }
}

// The same with two tiles in flight. The block's weights come from afar for the first rows alone; after them a half fetches a row of what
// comes next, or one that is there: of x, if it will be copied, or of the next pass's weights.
template <class X>
void linear_many_in_flight(const LinearPass<X, X>& all, X* room) {
  const int64_t tiles = (all.rows + Wide::rows - 1) / Wide::rows, steps = all.cols / Wide::cols;
  const auto first = [&](int64_t tile) { return all.rows * tile / tiles; };
  const int64_t halves = 2 * steps * (tiles - 1);
  int64_t past = 0;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const LinearPass<X, X> at = apart(some_rows(all, first(tile), first(tile + 1)), room);
    const LinearPass<X, X> soon = some_rows(all, first(tile + 1), tile + 1 < tiles ? first(tile + 2) : all.rows);
    int64_t half = 0;
    if (tile == 0) {
      InFlight<X, X>::template compute<2>(at, steps, [&] {
        ++half;
        return at.weight + (2 * half + 2 < at.cols ? 2 * half + 2 : 0) * at.weight_stride;
      });
    } else {
      const int64_t rows = at.x == room ? soon.rows : 0;
      InFlight<X, X>::template compute<1>(at, steps, [&] {
        if (half < rows) return soon.x + half++ * at.x_stride;
        const int64_t row = all.soon_rows * past / halves;
        ++past;
        return row < all.soon_rows * past / halves ? all.soon + row * at.weight_stride : at.weight;
      });
    }
  }
  if (steps * Wide::cols < all.cols) linear_many(columns_from(all, steps * Wide::cols), room);
}

// room: for few_rows rows of x, each as long as wide_stride floats.
template <class X, class W>
void linear_pass(const LinearPass<X, W>& at, X* room) {
  if (at.rows > Wide::rows && at.rows <= Tall::rows) return linear_few<Tall>(apart(at, room));
  if constexpr (InFlight<X, W>::possible) {
    if (at.rows > few_rows) return linear_many_in_flight(at, room);
    if (at.rows > Wide::rows) return linear_few_in_flight(apart(at, room));
  }
  at.rows > few_rows ? linear_many(at, room) : linear_few<Wide>(apart(at, room));
}

// The same with the rows of x widened first, at most few_rows at a time.
inline void linear_pass_widened(const LinearPass<bfloat16, bfloat16>& at, float* room) {
  for (int64_t row = 0; row < at.rows; row += few_rows) {
    const int64_t rows = row + few_rows < at.rows ? few_rows : at.rows - row;
    for (int64_t m = 0; m < rows; ++m)
      for_each_block(at.depth, [&](int64_t k, int64_t lanes) {
        Vec::load(at.x + (row + m) * at.x_stride + k, lanes).store(room + m * wide_stride + k, lanes);
      });
    const LinearPass<bfloat16, bfloat16> some = some_rows(at, row, row + rows);
    const bool last = row + rows == at.rows;
    const LinearPass<float, bfloat16> wide = {
        room,          at.weight, some.start, some.out, wide_stride, at.weight_stride,       at.start_stride,
        at.out_stride, rows,      at.cols,    at.depth, at.soon,     last ? at.soon_rows : 0};
    linear_pass(wide, room);  // which has no reason to copy them again
  }
}

// Where the sums of a block grow: in the result itself, or, for bfloat16, in scratch.
inline float* sums_of(float* out, float*) { return out; }
inline float* sums_of(bfloat16*, float* scratch) { return scratch; }

// Inputs of a pass, of which a row adds up the same ones whatever rows are beside it. Two tiles in flight read their weights from L1 twice;
// where there are several passes, shorter ones leave them there, and their ends cost little.
template <class Number>
int64_t pass_depth(int64_t inputs) {
  constexpr int64_t most = multiplies_bfloat16 ? block_depth * static_cast<int64_t>(sizeof(float) / sizeof(Number)) : block_depth;
  return InFlight<Number, Number>::possible && inputs > most ? most / 3 * 2 : most;
}

template <class Number>
void linear(const LinearOf<Number>& op, int64_t row0, int64_t row1, int64_t col0, int64_t col1, const WeightsOf<Number>& next,
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
    for (int64_t k = 0; k == 0 || k < op.inputs; k += most) {  // once for no inputs too: the bias alone
      const int64_t depth = k + most < op.inputs ? most : op.inputs - k;
      const bool last = k + most >= op.inputs;
      const WeightsOf<Number> soon = !last                    ? WeightsOf<Number>{weight + k + most, cols}
                                     : n0 + block_cols < col1 ? WeightsOf<Number>{weight + block_cols * op.inputs, col1 - n0 - block_cols}
                                                              : next;
      LinearPass<Number, Number> at = {x + k,  weight + k, sums, sums,  op.x_stride, op.inputs, stride,
                                       stride, rows,       cols, depth, soon.rows,   soon.count};
      if (k == 0) at.start = bias, at.start_stride = 0;
      float* room = scratch + linear_rows * block_cols;
      if constexpr (in_place || multiplies_bfloat16)
        linear_pass(at, reinterpret_cast<Number*>(room));
      else
        linear_pass_widened(at, room);
    }
    for (int64_t m = 0; m < rows; ++m) {
      if constexpr (in_place) {
        activate(op.activation, sums + m * stride, cols);
      } else {
        coarse_activate(op.activation, sums + m * stride, cols);
        for_each_block(
            cols, [&](int64_t n, int64_t lanes) { Vec::load(sums + m * stride + n, lanes).store(out + m * op.out_stride + n, lanes); });
      }
    }
  }
}

}  // namespace
}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
