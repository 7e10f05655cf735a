// Fills a replay's addresses and row counts into the nodes of a plan, which makes them ops that can run.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>
#include <vector>

#include "../address.h"
#include "../cpu/dispatch.h"
#include "../parallel.h"
#include "node.h"

namespace bertfast::plan {

// Consecutive sequences of a batch, which a thread takes through a plan's first nodes apart from the others.
struct Band {
  int64_t first_row, rows, sequences;
  const int32_t* cu_seqlens;  // [sequences + 1], from 0
};

template <class Number>
class Binder {
 public:
  // arenas: one for each row count. nodes: how many will be bound. outlives_bands: of each buffer, whether nodes after the bands read or
  // write it.
  Binder(const std::vector<Buffer>& buffers, const std::vector<char>& outlives_bands, const std::vector<int64_t>& counts,
         const std::vector<Address>& slots, const Number* const* arenas, size_t nodes)
      : buffers_(buffers),
        outlives_bands_(outlives_bands),
        counts_(counts),
        slots_(slots),
        arenas_(arenas),
        threads_(num_threads()),
        ops_(new BoundOp[nodes]) {
    steps_.reserve(nodes);
  }

  // For a band of the batch that `whole` binds; counts are the band's. Buffers that outlive bands lie in whole's arenas, the others in
  // band_arena.
  Binder(const Binder& whole, const std::vector<int64_t>& counts, const Band& band, Number* band_arena, size_t nodes)
      : buffers_(whole.buffers_),
        outlives_bands_(whole.outlives_bands_),
        counts_(counts),
        slots_(whole.slots_),
        arenas_(whole.arenas_),
        threads_(1),
        band_(&band),
        batch_counts_(&whole.counts_),
        band_arena_(band_arena),
        ops_(new BoundOp[nodes]) {
    steps_.reserve(nodes);
  }

  template <class Op>
  void operator()(const Node<Op>& node) {
    BoundOp& op = ops_[steps_.size()];
    steps_.push_back(step_of(op.template emplace<Op>(kernels_, node.recorded.bind(*this), threads_)));
  }

  const std::vector<Step>& steps() const { return steps_; }

  // After the run: whether an id was outside its table.
  bool bad_id() const {
    bool bad = false;
    each_embedding([&](const auto& op) { bad |= op.bad_id(); });
    return bad;
  }
  // Throws std::invalid_argument, naming the id, if there was one, here or (elsewhere) in a band.
  void check_ids(bool elsewhere) const {
    each_embedding([&](const auto& op) { op.check_ids(elsewhere); });
  }

  int64_t count(int64_t symbol) const { return counts_[static_cast<size_t>(symbol)]; }

  const void* address(const Operand& operand) const {
    const Ref& ref = operand.ref;
    if (band_ != nullptr && operand.extent == Extent::boundaries) return band_->cu_seqlens;
    switch (ref.kind) {
      case Ref::Kind::constant:
        return at<char>(static_cast<Address>(ref.value));
      case Ref::Kind::slot: {
        const char* start = reinterpret_cast<const char*>(at<Number>(slots_[static_cast<size_t>(ref.value)]) + ref.column);
        return band_ != nullptr && operand.extent == Extent::rows ? start + band_->first_row * operand.row_bytes : start;
      }
      case Ref::Kind::buffer:
        return row_of(static_cast<size_t>(ref.value)) + ref.column;
      case Ref::Kind::none:
      case Ref::Kind::count:
        break;
    }
    return nullptr;
  }

 private:
  using BoundOp = typename PlanOps<Number>::BoundOp;

  // The first row of a buffer, of the band's rows if there is a band.
  const Number* row_of(size_t index) const {
    const Buffer& buffer = buffers_[index];
    const auto rows = static_cast<size_t>(buffer.rows);
    if (band_ == nullptr) return arenas_[rows] + buffer.place * counts_[rows];
    if (!outlives_bands_[index]) return band_arena_ + buffer.place * band_->rows;
    return arenas_[rows] + buffer.place * (*batch_counts_)[rows] + band_->first_row * buffer.columns;
  }

  template <class Body>
  void each_embedding(Body body) const {
    for (size_t n = 0; n < steps_.size(); ++n) {
      if (const auto* op = std::get_if<cpu::EmbedLayerNormOp<Number>>(&ops_[n])) body(*op);
      if constexpr (std::is_same_v<Number, float>)
        if (const auto* op = std::get_if<cpu::EmbedLayerNormOp<float, uint8_t>>(&ops_[n])) body(*op);
    }
  }

  const std::vector<Buffer>& buffers_;
  const std::vector<char>& outlives_bands_;
  const std::vector<int64_t>& counts_;
  const std::vector<Address>& slots_;
  const Number* const* arenas_;
  const cpu::Kernels& kernels_ = cpu::kernels();
  int threads_;
  const Band* band_ = nullptr;
  const std::vector<int64_t>* batch_counts_ = nullptr;
  Number* band_arena_ = nullptr;
  std::unique_ptr<BoundOp[]> ops_;  // by node; steps point at them, so they must not move
  std::vector<Step> steps_;
};

}  // namespace bertfast::plan
