#include "plan.h"

#include <algorithm>

#include "../check.h"
#include "../parallel.h"

namespace bertfast::plan {

template <class Number>
int64_t PlanOf<Number>::add_buffer(const Buffer& buffer) {
  check(buffer.rows);
  int64_t& columns = arena_columns_[static_cast<size_t>(buffer.rows)];
  outlives_bands_.resize(buffers_.size() + 1, 0);  // before the buffer: an error leaves one too many, which the next call takes
  buffers_.push_back(buffer);
  columns = std::max(columns, buffer.place + buffer.columns);
  return static_cast<int64_t>(buffers_.size()) - 1;
}

template <class Number>
void PlanOf<Number>::check(const Ref& ref) {
  if (ref.kind == Ref::Kind::slot) {
    BF_CHECK(ref.value >= 0, "plan: an operand is slot ", ref.value, ", expected 0 or more");
    slots_ = std::max(slots_, ref.value + 1);
  }
  if (ref.kind == Ref::Kind::buffer)
    BF_CHECK(ref.value >= 0 && ref.value < static_cast<int64_t>(buffers_.size()), "plan: an operand is buffer ", ref.value,
             ", expected one of the ", buffers_.size(), " that add_buffer returned");
}

template <class Number>
void PlanOf<Number>::check(int64_t row_count) {
  BF_CHECK(row_count >= 0, "plan: an op counts rows by ", row_count, ", expected the index of a row count");
  if (row_count >= static_cast<int64_t>(arena_columns_.size())) arena_columns_.resize(static_cast<size_t>(row_count) + 1, 0);
}

template <class Number>
void PlanOf<Number>::run(const std::vector<int64_t>& counts, const std::vector<Address>& slots) const {
  BF_CHECK(counts.size() >= arena_columns_.size(), "plan: got ", counts.size(), " row counts, expected ", arena_columns_.size());
  BF_CHECK(static_cast<int64_t>(slots.size()) >= slots_, "plan: got ", slots.size(), " slots, expected ", slots_);
  const auto arena_bytes = [&](size_t s) { return to_cache_lines(arena_columns_[s] * counts[s] * static_cast<int64_t>(sizeof(Number))); };
  int64_t bytes = 0;
  for (size_t s = 0; s < arena_columns_.size(); ++s) bytes += arena_bytes(s);
  thread_local ThreadArena arena;
  const ThreadArena::Lease memory(arena, bytes);
  InlineVector<Number*, 8> arenas;
  char* place = memory.data();
  for (size_t s = 0; s < arena_columns_.size(); place += arena_bytes(s), ++s) arenas.push_back(reinterpret_cast<Number*>(place));

  // All nodes are bound first, so that bad boundaries or indices raise before anything is written.
  Binder<Number> binder(buffers_, outlives_bands_, counts, slots, arenas.begin(), nodes_.size());
  for (const AnyNode& node : nodes_) std::visit(binder, node);
  const std::vector<Step>& steps = binder.steps();

  if (eligibility_.has_boundaries()) {
    const auto boundaries_at = [&](size_t i) {
      return static_cast<const int32_t*>(binder.address({0, eligibility_.boundaries()[i], Extent::boundaries, 0}));
    };
    const int32_t *queries = boundaries_at(0), *keys = boundaries_at(1);
    const int64_t rows = counts[eligibility_.rows()], sequences = counts[eligibility_.sequences()];
    std::vector<int64_t> cuts;
    if (queries[sequences] == rows && std::equal(queries, queries + sequences + 1, keys))
      cuts = cut_into_bands(queries, sequences, num_threads());
    if (!cuts.empty()) {
      const BandsOp<Number> bands(nodes_, banded_, binder, counts, eligibility_, arena_columns_[eligibility_.rows()], queries,
                                  std::move(cuts));
      std::vector<Step> with_bands = {step_of(bands)};
      with_bands.insert(with_bands.end(), steps.begin() + static_cast<std::ptrdiff_t>(banded_), steps.end());
      run_steps(with_bands.data(), static_cast<int64_t>(with_bands.size()));
      return binder.check_ids(bands.bad_id());
    }
  }
  run_steps(steps.data(), static_cast<int64_t>(steps.size()));
  binder.check_ids(false);
}

template class PlanOf<float>;
template class PlanOf<cpu::bfloat16>;

Plan::Plan(bool bfloat16) {
  if (bfloat16) plan_.emplace<PlanOf<cpu::bfloat16>>();
}

int64_t Plan::add_buffer(const Buffer& buffer) {
  return std::visit([&](auto& plan) { return plan.add_buffer(buffer); }, plan_);
}

int64_t Plan::size() const {
  return std::visit([](const auto& plan) { return plan.size(); }, plan_);
}

void Plan::run(const std::vector<int64_t>& counts, const std::vector<Address>& slots) const {
  std::visit([&](const auto& plan) { plan.run(counts, slots); }, plan_);
}

}  // namespace bertfast::plan
