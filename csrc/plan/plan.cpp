#include "plan.h"

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <memory>
#include <new>

#include "../check.h"
#include "../cpu/cached_ops.h"
#include "../cpu/dispatch.h"
#include "../cpu/int8_ops.h"
#include "../cpu/ops.h"
#include "../parallel.h"

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
      : buffers_(buffers), counts_(counts), slots_(slots), arenas_(arenas) {}

  Ops<Number> ops;

  void operator()(const Embed& n) {
    if (n.word_scales.kind == Ref::Kind::none)
      embed<Number>(n, ops.embeddings);
    else if constexpr (of_float)
      embed<uint8_t>(n, ops.int8_embeddings);
    else
      fail(no_int8);
  }

  void operator()(const AddLayerNorm& n) {
    Number* out = get<Number>(n.out);
    ops.norms.push_back({cpu::kernels(),
                         {get<const Number>(n.x), get<const Number>(n.residual), get<const Number>(n.weight), get<const Number>(n.bias),
                          out, count(n.rows), n.hidden, n.eps},
                         quantize(out, n.hidden, n.hidden, n.quantized)});
    step(ops.norms.back());
  }

  void operator()(const Int8Rows& n) {
    ops.int8_rows.push_back({cpu::kernels(), quantize(get<const Number>(n.x), n.inputs, n.x_stride, n.out), count(n.rows)});
    step(ops.int8_rows.back());
  }

  void operator()(const Int8Linear& n) {
    BF_CHECK(of_float, no_int8);
    int64_t columns = 0;
    for (const Int8Part& part : n.parts) columns += part.features;
    std::vector<cpu::Int8Linear> parts;
    parts.reserve(n.parts.size());
    float* out = get<float>(n.out);
    for (const Int8Part& part : n.parts) {
      parts.push_back({get<const char>(n.x), get<const uint8_t>(part.panels), get<const float>(part.scales), get<const float>(part.bias),
                       out, get<char>(n.quantized), cpu::int8_groups(n.inputs), part.features, columns, cpu::int8_groups(columns),
                       n.activation});
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
    Number* out = get<Number>(n.out);
    for (const Part& part : n.parts) {
      parts.push_back({get<const Number>(n.x), get<const Number>(part.weight), get<const Number>(part.bias), out, count(n.rows), n.inputs,
                       part.features, n.x_stride, columns, n.activation});
      out += part.features;
    }
    ops.linears.emplace_back(cpu::kernels(), std::move(parts), num_threads());
    step(ops.linears.back());
  }

  void operator()(const Attend& n) {
    const cpu::AttentionOf<Number> args = {get<const Number>(n.q),
                                           get<const Number>(n.k),
                                           get<const Number>(n.v),
                                           get<Number>(n.out),
                                           n.q_stride,
                                           n.k_stride,
                                           n.v_stride,
                                           get<const int32_t>(n.cu_seqlens_q),
                                           get<const int32_t>(n.cu_seqlens_k),
                                           count(n.sequences),
                                           n.heads,
                                           n.head_size,
                                           n.scale,
                                           n.causal};
    cpu::check_boundaries("cu_seqlens_q", args.cu_seqlens_q, args.sequences, count(n.q_rows));
    cpu::check_boundaries("cu_seqlens_k", args.cu_seqlens_k, args.sequences, count(n.k_rows));
    ops.attentions.emplace_back(cpu::kernels(), args, num_threads());
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
                                          c.key_row,
                                          c.key_head,
                                          c.key_cell,
                                          c.value_row,
                                          c.value_head,
                                          c.value_cell,
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
                                                 c.key_row,
                                                 c.key_head,
                                                 c.key_cell,
                                                 c.value_row,
                                                 c.value_head,
                                                 c.value_cell,
                                                 count(n.rows),
                                                 c.heads,
                                                 c.head_size,
                                                 n.scale};
    ops.decodings.emplace_back(cpu::kernels(), args, c.cache_rows, c.cells);
    step(ops.decodings.back());
  }

 private:
  template <class Word, class Embeddings>
  void embed(const Embed& n, Embeddings& embeddings) {
    const int64_t word_rows = n.words.kind == Ref::Kind::slot ? count(n.word_rows) : n.word_rows;
    Number* out = get<Number>(n.out);
    const cpu::EmbeddingOf<Number, Word> args = {get<const int64_t>(n.input_ids),
                                                 get<const int64_t>(n.position_ids),
                                                 get<const int64_t>(n.type_ids),
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
    if constexpr (of_float) return {x, get<char>(to), inputs, cpu::int8_groups(inputs), x_stride};
    BF_CHECK(to.kind == Ref::Kind::none, no_int8);
    return {};
  }

  int64_t count(int64_t symbol) const { return counts_[static_cast<size_t>(symbol)]; }

  template <class T>
  T* get(const Ref& ref) const {
    switch (ref.kind) {
      case Ref::Kind::constant:
        return at<T>(static_cast<Address>(ref.value));
      case Ref::Kind::slot:
        return reinterpret_cast<T*>(at<Number>(slots_[static_cast<size_t>(ref.value)]) + ref.column);
      case Ref::Kind::buffer: {
        const Buffer& buffer = buffers_[static_cast<size_t>(ref.value)];
        return reinterpret_cast<T*>(arenas_[static_cast<size_t>(buffer.rows)] + buffer.place * count(buffer.rows) + ref.column);
      }
      case Ref::Kind::none:
        break;
    }
    return nullptr;
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
  thread_local Arena kept;
  thread_local int64_t kept_size = 0;
  Arena large;
  char* base = nullptr;
  if (bytes > kept_bytes) {
    large = allocate(bytes);
    base = large.get();
  } else {
    if (bytes > kept_size) {
      kept.reset();
      kept_size = 0;
      kept = allocate(bytes);
      kept_size = bytes;
    }
    base = kept.get();
  }
  std::vector<Number*> arenas;
  for (const int64_t offset : offsets) arenas.push_back(reinterpret_cast<Number*>(base + offset));

  Binder<Number> bind(buffers_, counts, slots, arenas);
  for (const Node& node : nodes_) std::visit(bind, node);
  run_steps(bind.ops.steps.data(), static_cast<int64_t>(bind.ops.steps.size()));
  for (const auto& op : bind.ops.embeddings) op.check();
  for (const auto& op : bind.ops.int8_embeddings) op.check();
}

void Plan::run(const std::vector<int64_t>& counts, const std::vector<Address>& slots) const {
  if (bfloat16_)
    run_as<cpu::bfloat16>(counts, slots);
  else
    run_as<float>(counts, slots);
}

}  // namespace bertfast::plan
