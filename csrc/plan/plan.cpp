#include "plan.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <deque>
#include <initializer_list>
#include <memory>
#include <new>

#include "../check.h"
#include "../cpu/cached_ops.h"
#include "../cpu/dispatch.h"
#include "../cpu/int8_ops.h"
#include "../cpu/ops.h"
#include "../parallel.h"
#include "bands.h"

namespace bertfast::plan {
namespace {

constexpr int64_t alignment = 64;         // bytes: a cache line, so that rows start on one where widths allow it
constexpr int64_t kept_bytes = 64 << 20;  // a thread keeps an arena of up to as many; a larger one goes back after the call

struct Free {
  void operator()(char* p) const { std::free(p); }
};
using Arena = std::unique_ptr<char, Free>;

Arena allocate(int64_t bytes) {
  Arena arena(static_cast<char*>(std::aligned_alloc(4096, static_cast<size_t>((bytes + 4095) / 4096 * 4096))));
  if (arena == nullptr) throw std::bad_alloc();
  return arena;
}

// A thread's room for what ops leave for later ones, kept between calls unless it is large.
class Room {
 public:
  char* take(int64_t bytes) {
    if (bytes > kept_bytes) return (large_ = allocate(bytes)).get();
    if (bytes > size_) {
      kept_.reset();
      size_ = 0;
      kept_ = allocate(bytes);
      size_ = bytes;
    }
    return kept_.get();
  }
  void give_back() { large_.reset(); }

 private:
  Arena kept_, large_;
  int64_t size_ = 0;
};

// Some sequences of a batch, and their rows.
struct Band {
  int64_t first_row, rows, sequences;
  const int32_t* cu_seqlens;  // [sequences + 1], from 0
};

// The ops of one replay. Steps point at them, so they may not move: deques.
template <class Number>
struct Ops {
  std::deque<cpu::EmbeddingOpOf<Number>> embeddings;
  std::deque<cpu::Int8EmbeddingOp> int8_embeddings;
  std::deque<cpu::LayerNormOpOf<Number>> norms;
  std::deque<cpu::LinearOpOf<Number>> linears;
  std::deque<cpu::Int8QuantizeOp> int8_rows;
  std::deque<cpu::Int8LinearOp> int8_linears;
  std::deque<cpu::AttentionOpOf<Number>> attentions;
  std::deque<cpu::PackOp> packs;
  std::deque<cpu::UnpackOpOf<Number>> unpacks;
  std::deque<cpu::CacheWriteOp<Number>> writes;
  std::deque<cpu::CachedAttentionOp<Number>> decodings;
  std::vector<Step> steps;
};

// Puts this replay's addresses and sizes into the nodes of a plan.
template <class Number>
class Binder {
 public:
  Binder(const std::vector<Buffer>& buffers, const std::vector<int64_t>& counts, const std::vector<Address>& slots,
         const std::vector<Number*>& arenas)
      : buffers_(buffers), counts_(counts), slots_(slots), arenas_(arenas), shared_(buffers.size(), 0) {}

  // The same for a band of the batch that `whole` binds: counts are the band's, what later steps of the whole batch read lies in its
  // arenas, all else in `room`.
  Binder(const Binder& whole, const std::vector<int64_t>& counts, const Band& band, Number* room)
      : buffers_(whole.buffers_),
        counts_(counts),
        slots_(whole.slots_),
        arenas_(whole.arenas_),
        shared_(whole.shared_),
        band_(&band),
        whole_rows_(whole.counts_),
        room_(room) {}

  Ops<Number> ops;

  // From here on, note which buffers are read or written.
  void watch() { watching_ = true; }

  void operator()(const Embed& n) {
    if (n.word_scales.kind == Ref::Kind::none)
      embed<Number>(n, ops.embeddings);
    else if constexpr (of_float)
      embed<uint8_t>(n, ops.int8_embeddings);
    else
      fail(no_int8);
  }

  void operator()(const AddLayerNorm& n) {
    Number* out = rows<Number>(n.out, n.hidden);
    ops.norms.push_back({cpu::kernels(),
                         {rows<const Number>(n.x, n.hidden), rows<const Number>(n.residual, n.hidden), get<const Number>(n.weight),
                          get<const Number>(n.bias), out, count(n.rows), n.hidden, n.eps},
                         quantize(out, n.hidden, n.hidden, n.quantized)});
    step(ops.norms.back());
  }

  void operator()(const Int8Rows& n) {
    ops.int8_rows.push_back({cpu::kernels(), quantize(rows<const Number>(n.x, n.x_stride), n.inputs, n.x_stride, n.out), count(n.rows)});
    step(ops.int8_rows.back());
  }

  void operator()(const Int8Linear& n) {
    BF_CHECK(of_float, no_int8);
    int64_t columns = 0;
    for (const Int8Part& part : n.parts) columns += part.features;
    std::vector<cpu::Int8Linear> parts;
    parts.reserve(n.parts.size());
    float* out = rows<float>(n.out, columns);
    const char* x = rows<const char>(n.x, cpu::int8_row_bytes(n.inputs));
    char* quantized = rows<char>(n.quantized, cpu::int8_row_bytes(columns));
    for (const Int8Part& part : n.parts) {
      parts.push_back({x, get<const uint8_t>(part.panels), get<const float>(part.scales), get<const float>(part.bias), out, quantized,
                       cpu::int8_groups(n.inputs), part.features, columns, cpu::int8_groups(columns), n.activation});
      if (out != nullptr) out += part.features;
    }
    ops.int8_linears.emplace_back(cpu::kernels(), std::move(parts), count(n.rows));
    step(ops.int8_linears.back());
  }

  void operator()(const Linear& n) {
    int64_t columns = 0;
    for (const Part& part : n.parts) columns += part.features;
    std::vector<cpu::LinearOf<Number>> parts;
    parts.reserve(n.parts.size());
    Number* out = rows<Number>(n.out, columns);
    const Number* x = rows<const Number>(n.x, n.x_stride);
    for (const Part& part : n.parts) {
      parts.push_back({x, get<const Number>(part.weight), get<const Number>(part.bias), out, count(n.rows), n.inputs, part.features,
                       n.x_stride, columns, n.activation});
      out += part.features;
    }
    ops.linears.emplace_back(cpu::kernels(), std::move(parts), threads());
    step(ops.linears.back());
  }

  void operator()(const Attend& n) {
    const cpu::AttentionOf<Number> args = {rows<const Number>(n.q, n.q_stride),
                                           rows<const Number>(n.k, n.k_stride),
                                           rows<const Number>(n.v, n.v_stride),
                                           rows<Number>(n.out, n.heads * n.head_size),
                                           n.q_stride,
                                           n.k_stride,
                                           n.v_stride,
                                           band_ == nullptr ? get<const int32_t>(n.cu_seqlens_q) : band_->cu_seqlens,
                                           band_ == nullptr ? get<const int32_t>(n.cu_seqlens_k) : band_->cu_seqlens,
                                           count(n.sequences),
                                           n.heads,
                                           n.head_size,
                                           n.scale,
                                           n.causal,
                                           n.bfloat16_products};
    if (band_ == nullptr) {
      cpu::check_boundaries("cu_seqlens_q", args.cu_seqlens_q, args.sequences, count(n.q_rows));
      cpu::check_boundaries("cu_seqlens_k", args.cu_seqlens_k, args.sequences, count(n.k_rows));
    }
    ops.attentions.emplace_back(cpu::kernels(), args, threads());
    step(ops.attentions.back());
  }

  void operator()(const Pack& n) {
    const auto* indices = get<const int64_t>(n.indices);
    cpu::check_indices(indices, count(n.rows), count(n.from_rows), "pack");
    ops.packs.push_back({get<const char>(n.x), indices, get<char>(n.out), count(n.rows), n.columns * static_cast<int64_t>(sizeof(Number))});
    step(ops.packs.back());
  }

  void operator()(const Unpack& n) {
    const auto* indices = get<const int64_t>(n.indices);
    const bool ascending = cpu::check_indices(indices, count(n.from_rows), count(n.rows), "unpack");
    ops.unpacks.push_back({get<const Number>(n.x), indices, get<Number>(n.out), count(n.from_rows), n.columns, count(n.rows),
                           cpu::rounded(n.fill, Number{}), ascending});
    step(ops.unpacks.back());
  }

  void operator()(const WriteCache& n) {
    const CacheShape& c = n.shape;
    const cpu::CacheWrite<Number> args = {get<const Number>(n.k),
                                          get<const Number>(n.v),
                                          get<Number>(n.keys),
                                          get<Number>(n.values),
                                          get<const int64_t>(n.cache_row),
                                          get<const int64_t>(n.cell),
                                          n.k_stride,
                                          n.v_stride,
                                          c.strides,
                                          count(n.rows),
                                          c.heads,
                                          c.head_size};
    ops.writes.emplace_back(args, c.cache_rows, c.cells);
    step(ops.writes.back());
  }

  void operator()(const AttendCache& n) {
    const CacheShape& c = n.shape;
    const cpu::CachedAttentionOf<Number> args = {get<const Number>(n.q),
                                                 get<const Number>(n.keys),
                                                 get<const Number>(n.values),
                                                 get<const int64_t>(n.cache_row),
                                                 get<const int64_t>(n.first),
                                                 get<const int64_t>(n.last),
                                                 get<Number>(n.out),
                                                 n.q_stride,
                                                 c.strides,
                                                 count(n.rows),
                                                 c.heads,
                                                 c.head_size,
                                                 n.scale};
    ops.decodings.emplace_back(cpu::kernels(), args, c.cache_rows, c.cells);
    step(ops.decodings.back());
  }

  template <class T>
  T* get(const Ref& ref) const {
    switch (ref.kind) {
      case Ref::Kind::constant:
        return at<T>(static_cast<Address>(ref.value));
      case Ref::Kind::slot:
        return reinterpret_cast<T*>(at<Number>(slots_[static_cast<size_t>(ref.value)]) + ref.column);
      case Ref::Kind::buffer: {
        const auto index = static_cast<size_t>(ref.value);
        const Buffer& buffer = buffers_[index];
        if (watching_) shared_[index] = 1;
        return reinterpret_cast<T*>(arenas_[static_cast<size_t>(buffer.rows)] + buffer.place * count(buffer.rows) + ref.column);
      }
      case Ref::Kind::none:
        break;
    }
    return nullptr;
  }

 private:
  template <class Word, class Embeddings>
  void embed(const Embed& n, Embeddings& embeddings) {
    const int64_t word_rows = n.words.kind == Ref::Kind::slot ? count(n.word_rows) : n.word_rows;
    Number* out = rows<Number>(n.out, n.hidden);
    const cpu::EmbeddingOf<Number, Word> args = {rows<const int64_t>(n.input_ids, 1),
                                                 rows<const int64_t>(n.position_ids, 1),
                                                 rows<const int64_t>(n.type_ids, 1),
                                                 get<const Word>(n.words),
                                                 get<const float>(n.word_scales),
                                                 n.word_width,
                                                 get<const Number>(n.positions),
                                                 get<const Number>(n.types),
                                                 word_rows,
                                                 n.position_rows,
                                                 n.type_rows,
                                                 get<const Number>(n.weight),
                                                 get<const Number>(n.bias),
                                                 out,
                                                 count(n.rows),
                                                 n.hidden,
                                                 n.eps};
    step(embeddings.emplace_back(cpu::kernels(), args, quantize(out, n.hidden, n.hidden, n.quantized)));
  }

  cpu::Int8Quantize quantize(const Number* x, int64_t inputs, int64_t x_stride, const Ref& to) const {
    if constexpr (of_float) return {x, rows<char>(to, cpu::int8_row_bytes(inputs)), inputs, cpu::int8_groups(inputs), x_stride};
    BF_CHECK(to.kind == Ref::Kind::none, no_int8);
    return {};
  }

  int threads() const { return band_ == nullptr ? num_threads() : 1; }

  int64_t count(int64_t symbol) const { return counts_[static_cast<size_t>(symbol)]; }

  // As get, for an operand whose rows, `columns` T apart, are those of the batch: from the band's first one on.
  template <class T>
  T* rows(const Ref& ref, int64_t columns) const {
    if (band_ == nullptr) return get<T>(ref);
    if (ref.kind == Ref::Kind::slot) return get<T>(ref) + band_->first_row * columns;
    if (ref.kind != Ref::Kind::buffer) return get<T>(ref);
    const auto index = static_cast<size_t>(ref.value);
    const Buffer& buffer = buffers_[index];
    Number* row = shared_[index] == 0
                      ? room_ + buffer.place * band_->rows
                      : arenas_[static_cast<size_t>(buffer.rows)] + buffer.place * whole_rows_[static_cast<size_t>(buffer.rows)] +
                            band_->first_row * buffer.columns;
    return reinterpret_cast<T*>(row + ref.column);
  }

  template <class Op>
  void step(const Op& op) {
    ops.steps.push_back(step_of(op));
  }

  static constexpr bool of_float = sizeof(Number) == sizeof(float);
  static constexpr const char* no_int8 = "plan: an op of int8 in a plan of bfloat16";

  const std::vector<Buffer>& buffers_;
  const std::vector<int64_t>& counts_;
  const std::vector<Address>& slots_;
  const std::vector<Number*>& arenas_;
  mutable std::vector<char> shared_;  // of each buffer: whether a step that was watched, or not in bands, touches it
  bool watching_ = false;
  const Band* band_ = nullptr;
  std::vector<int64_t> whole_rows_;
  Number* room_ = nullptr;
};

// The first nodes of a plan, of which each row of the result depends on rows of its own sequence alone.
class InBands {
 public:
  explicit InBands(const std::vector<Buffer>& buffers) : buffers_(buffers) {}

  const Attend* attention = nullptr;  // the first; all are over the same boundaries

  bool operator()(const Embed& n) {
    return n.input_ids.kind == Ref::Kind::slot && of_batch(n.rows, {n.input_ids, n.position_ids, n.type_ids, n.out, n.quantized});
  }
  bool operator()(const AddLayerNorm& n) { return of_batch(n.rows, {n.x, n.residual, n.out, n.quantized}); }
  bool operator()(const Linear& n) { return of_batch(n.rows, {n.x, n.out}); }
  bool operator()(const Int8Rows& n) { return of_batch(n.rows, {n.x, n.out}); }
  bool operator()(const Int8Linear& n) { return of_batch(n.rows, {n.x, n.out, n.quantized}); }
  bool operator()(const Attend& n) {
    if (attention == nullptr) attention = &n;
    const auto same = [](const Ref& a, const Ref& b) { return a.kind == b.kind && a.value == b.value && a.column == b.column; };
    return n.q_rows == n.k_rows && n.sequences == attention->sequences && same(n.cu_seqlens_q, attention->cu_seqlens_q) &&
           same(n.cu_seqlens_k, attention->cu_seqlens_k) && of_batch(n.q_rows, {n.q, n.k, n.v, n.out});
  }
  template <class Node>
  bool operator()(const Node&) {
    return false;
  }

 private:
  bool of_batch(int64_t rows, std::initializer_list<Ref> operands) {
    if (rows_ < 0) rows_ = rows;
    if (rows != rows_) return false;
    for (const Ref& ref : operands)
      if (ref.kind == Ref::Kind::constant || (ref.kind == Ref::Kind::buffer && buffers_[static_cast<size_t>(ref.value)].rows != rows))
        return false;
    return true;
  }

  const std::vector<Buffer>& buffers_;
  int64_t rows_ = -1;
};

// Nodes [0, count) of a plan, band by band.
template <class Number>
struct BandsOp {
  const std::vector<Node>& nodes;
  size_t count;
  const Binder<Number>& whole;
  const std::vector<int64_t>& counts;
  int64_t rows_symbol, sequences_symbol, columns;  // columns: of the arena
  const int32_t* cu_seqlens;
  std::vector<int64_t> cuts;
  mutable std::atomic<bool> bad_id{false};

  int64_t items() const { return static_cast<int64_t>(cuts.size()) - 1; }

  void run(int64_t item) const {
    const auto i = static_cast<size_t>(item);
    std::vector<int32_t> bounds(cu_seqlens + cuts[i], cu_seqlens + cuts[i + 1] + 1);
    const int32_t first = bounds[0];
    for (int32_t& bound : bounds) bound -= first;
    const Band band = {first, bounds.back(), cuts[i + 1] - cuts[i], bounds.data()};
    std::vector<int64_t> mine = counts;
    mine[static_cast<size_t>(rows_symbol)] = band.rows;
    mine[static_cast<size_t>(sequences_symbol)] = band.sequences;
    thread_local Room room;
    char* place = room.take((columns * band.rows * static_cast<int64_t>(sizeof(Number)) + alignment - 1) / alignment * alignment);
    Binder<Number> bind(whole, mine, band, reinterpret_cast<Number*>(place));
    for (size_t n = 0; n < count; ++n) std::visit(bind, nodes[n]);
    for (const Step& step : bind.ops.steps)
      for (int64_t k = 0; k < step.items; ++k) step.run(step.op, k);
    for (const auto& op : bind.ops.embeddings) note(op);
    for (const auto& op : bind.ops.int8_embeddings) note(op);
    room.give_back();
  }

 private:
  template <class Op>
  void note(const Op& op) const {
    if (op.bad_id.load(std::memory_order_relaxed)) bad_id.store(true, std::memory_order_relaxed);
  }
};

}  // namespace

int64_t Plan::add_buffer(const Buffer& buffer) {
  const auto rows = static_cast<size_t>(buffer.rows);
  if (arena_columns_.size() <= rows) arena_columns_.resize(rows + 1, 0);
  arena_columns_[rows] = std::max(arena_columns_[rows], buffer.place + buffer.columns);
  buffers_.push_back(buffer);
  return static_cast<int64_t>(buffers_.size()) - 1;
}

template <class Number>
void Plan::run_as(const std::vector<int64_t>& counts, const std::vector<Address>& slots) const {
  BF_CHECK(counts.size() >= arena_columns_.size(), "plan: ", counts.size(), " row counts, expected ", arena_columns_.size());
  int64_t bytes = 0;
  std::vector<int64_t> offsets;
  for (size_t s = 0; s < arena_columns_.size(); ++s) {
    offsets.push_back(bytes);
    bytes += (arena_columns_[s] * counts[s] * static_cast<int64_t>(sizeof(Number)) + alignment - 1) / alignment * alignment;
  }
  thread_local Room room;
  char* base = room.take(bytes);
  std::vector<Number*> arenas;
  for (const int64_t offset : offsets) arenas.push_back(reinterpret_cast<Number*>(base + offset));

  Binder<Number> bind(buffers_, counts, slots, arenas);
  InBands in_bands(buffers_);
  size_t apart = 0;
  while (apart < nodes_.size() && std::visit(in_bands, nodes_[apart])) ++apart;
  for (size_t n = 0; n < nodes_.size(); ++n) {
    if (n == apart) bind.watch();
    std::visit(bind, nodes_[n]);
  }
  std::vector<Step>& steps = bind.ops.steps;
  const auto check = [&bind](bool bad) {
    for (auto& op : bind.ops.embeddings) op.check(bad);
    for (auto& op : bind.ops.int8_embeddings) op.check(bad);
  };
  if (const Attend* attention = in_bands.attention) {
    const auto rows = static_cast<size_t>(attention->q_rows), sequences = static_cast<size_t>(attention->sequences);
    const auto* bounds = bind.template get<const int32_t>(attention->cu_seqlens_q);
    const auto* keys = bind.template get<const int32_t>(attention->cu_seqlens_k);
    const int64_t batch = counts[sequences];
    std::vector<int64_t> cuts;
    if (rows < arena_columns_.size() && bounds[batch] == counts[rows] && std::equal(bounds, bounds + batch + 1, keys))
      cuts = cut_into_bands(bounds, batch, num_threads());
    if (!cuts.empty()) {
      const BandsOp<Number> bands = {nodes_, apart,          bind, counts, attention->q_rows, attention->sequences, arena_columns_[rows],
                                     bounds, std::move(cuts)};
      std::vector<Step> few = {step_of(bands)};
      few.insert(few.end(), steps.begin() + static_cast<std::ptrdiff_t>(apart), steps.end());
      run_steps(few.data(), static_cast<int64_t>(few.size()));
      check(bands.bad_id);
      room.give_back();
      return;
    }
  }
  run_steps(steps.data(), static_cast<int64_t>(steps.size()));
  check(false);
  room.give_back();
}

void Plan::run(const std::vector<int64_t>& counts, const std::vector<Address>& slots) const {
  if (bfloat16_)
    run_as<cpu::bfloat16>(counts, slots);
  else
    run_as<float>(counts, slots);
}

}  // namespace bertfast::plan
