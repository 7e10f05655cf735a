// Bands: a batch cut between sequences. A thread takes one band through all layers, so that what it computed is still in its cache when it
// reads it, and waits for no other thread in between.
#pragma once

#include <atomic>
#include <cstdint>
#include <utility>
#include <variant>
#include <vector>

#include "arena.h"
#include "binder.h"
#include "node.h"

namespace bertfast::plan {

// Where to cut a batch of [sequences + 1] boundaries for so many threads: the first sequence of each band, and `sequences` at the end.
// Empty where bands would be too few or too uneven, so that sharing each op keeps the threads busier.
std::vector<int64_t> cut_into_bands(const int32_t* cu_seqlens, int64_t sequences, int threads);

// Whether the first nodes of a plan can run band by band: each row that they compute depends on rows of its own sequence alone, and all of
// them count the same rows and sequences.
class BandEligibility {
 public:
  // Nodes are asked for in their order, up to the first that is not accepted.
  template <class Op>
  bool accepts(const Recorded<typename Op::Args>& recorded, const std::vector<Buffer>& buffers) {
    if (!Op::sequences_independent) return false;
    bool good = true;
    std::vector<Ref> boundaries;
    recorded.visit(
        [&](const Operand& operand) {
          const Ref& ref = operand.ref;
          const bool is_buffer = ref.kind == Ref::Kind::buffer;
          if (operand.extent == Extent::boundaries) boundaries.push_back(ref);
          if (operand.extent == Extent::whole) good &= !is_buffer;
          if (operand.extent == Extent::rows) {
            good &= ref.kind != Ref::Kind::constant;
            if (is_buffer) good &= same(rows_, buffers[static_cast<size_t>(ref.value)].rows);
          }
        },
        [&](const RowCount& count) {
          if (count.of == CountOf::rows) good &= same(rows_, count.symbol);
          if (count.of == CountOf::sequences) good &= same(sequences_, count.symbol);
        });
    if (boundaries.empty() || !good) return good;
    if (boundaries_.empty()) boundaries_ = boundaries;
    return boundaries == boundaries_;
  }

  // Whether there is an attention, so that rows have sequences.
  bool has_boundaries() const { return !boundaries_.empty(); }
  const std::vector<Ref>& boundaries() const { return boundaries_; }  // cu_seqlens of queries and of keys
  size_t rows() const { return static_cast<size_t>(rows_); }          // which row count
  size_t sequences() const { return static_cast<size_t>(sequences_); }

 private:
  static bool same(int64_t& known, int64_t symbol) {
    if (known < 0) known = symbol;
    return known == symbol;
  }

  int64_t rows_ = -1, sequences_ = -1;
  std::vector<Ref> boundaries_;
};

// The first `count` nodes of a plan as one op, whose items are bands.
template <class Number>
class BandsOp {
 public:
  using Nodes = std::vector<typename PlanOps<Number>::AnyNode>;

  // whole: binds the batch. columns: of a band's arena. cuts: as cut_into_bands returns them.
  BandsOp(const Nodes& nodes, size_t count, const Binder<Number>& whole, const std::vector<int64_t>& counts,
          const BandEligibility& eligibility, int64_t columns, const int32_t* cu_seqlens, std::vector<int64_t> cuts)
      : nodes_(nodes),
        count_(count),
        whole_(whole),
        counts_(counts),
        eligibility_(eligibility),
        columns_(columns),
        cu_seqlens_(cu_seqlens),
        cuts_(std::move(cuts)) {}

  int64_t items() const { return static_cast<int64_t>(cuts_.size()) - 1; }

  void run(int64_t item) const {
    const auto i = static_cast<size_t>(item);
    std::vector<int32_t> bounds(cu_seqlens_ + cuts_[i], cu_seqlens_ + cuts_[i + 1] + 1);
    const int32_t first = bounds[0];
    for (int32_t& bound : bounds) bound -= first;
    const Band band = {first, bounds.back(), cuts_[i + 1] - cuts_[i], bounds.data()};
    std::vector<int64_t> counts = counts_;
    counts[eligibility_.rows()] = band.rows;
    counts[eligibility_.sequences()] = band.sequences;
    thread_local ThreadArena arena;
    const ThreadArena::Lease memory(arena, to_cache_lines(columns_ * band.rows * static_cast<int64_t>(sizeof(Number))));
    Binder<Number> binder(whole_, counts, band, reinterpret_cast<Number*>(memory.data()), count_);
    for (size_t n = 0; n < count_; ++n) std::visit(binder, nodes_[n]);
    for (const Step& step : binder.steps())
      for (int64_t k = 0; k < step.items; ++k) step.run(step.op, k);
    if (binder.bad_id()) bad_id_.store(true, std::memory_order_relaxed);
  }

  bool bad_id() const { return bad_id_.load(std::memory_order_relaxed); }

 private:
  const Nodes& nodes_;
  size_t count_;
  const Binder<Number>& whole_;
  const std::vector<int64_t>& counts_;
  const BandEligibility& eligibility_;
  int64_t columns_;
  const int32_t* cu_seqlens_;
  std::vector<int64_t> cuts_;
  mutable std::atomic<bool> bad_id_{false};
};

}  // namespace bertfast::plan
