// A forward as a flat list of ops, recorded once from the Python graph and replayed in one call: one crossing of the language border, one
// parallel region, a barrier between ops.
//
// A plan holds for any batch. Row counts are symbols (rows, sequences, padded rows) whose values each replay brings, as it brings the
// addresses of inputs and outputs (slots). Weights are constants: their addresses, which the caller checks before every replay. Results for
// later ops lie in an arena for each row count; their places there are columns, so that they hold for any number of rows.
#pragma once

#include <cstdint>
#include <utility>
#include <variant>
#include <vector>

#include "../address.h"
#include "bands.h"
#include "node.h"

namespace bertfast::plan {

template <class Number>
class PlanOf {
 public:
  int64_t add_buffer(const Buffer& buffer);

  // After the buffers that it reads or writes. After an error the plan is as it was.
  template <class Op>
  void add(Recorded<typename Op::Args> recorded) {
    check(recorded);
    BandEligibility with_node = eligibility_;
    const bool banded = banded_ == nodes_.size() && with_node.accepts<Op>(recorded, buffers_);
    nodes_.emplace_back(Node<Op>{std::move(recorded)});
    if (banded) {
      ++banded_;
      eligibility_ = std::move(with_node);
      return;
    }
    std::get<Node<Op>>(nodes_.back())
        .recorded.visit(
            [this](const Operand& operand) {
              if (operand.ref.kind == Ref::Kind::buffer) outlives_bands_[static_cast<size_t>(operand.ref.value)] = 1;
            },
            [](const RowCount&) {});
  }

  int64_t size() const { return static_cast<int64_t>(nodes_.size()); }
  void run(const std::vector<int64_t>& counts, const std::vector<Address>& slots) const;

 private:
  using AnyNode = typename PlanOps<Number>::AnyNode;

  template <class Args>
  void check(const Recorded<Args>& recorded) {
    recorded.visit([this](const Operand& operand) { check(operand.ref); }, [this](const RowCount& count) { check(count.symbol); });
  }
  void check(const Ref& ref);
  void check(int64_t row_count);

  std::vector<Buffer> buffers_;
  std::vector<char> outlives_bands_;    // of each buffer: whether a node that is not banded reads or writes it
  std::vector<int64_t> arena_columns_;  // by row count
  std::vector<AnyNode> nodes_;
  size_t banded_ = 0;  // nodes that can run band by band: the first of all
  BandEligibility eligibility_;
  int64_t slots_ = 0;  // that operands name
};

// Of float, or of bfloat16 throughout (then without int8 ops).
class Plan {
 public:
  explicit Plan(bool bfloat16 = false);

  int64_t add_buffer(const Buffer& buffer);
  int64_t size() const;

  // counts: the value of each row count. slots: the address of each input and output, all of which must stay valid meanwhile. Throws
  // std::invalid_argument for an id outside its table, and for boundaries or indices outside their rows.
  void run(const std::vector<int64_t>& counts, const std::vector<Address>& slots) const;

  template <class Number>
  PlanOf<Number>* as() {
    return std::get_if<PlanOf<Number>>(&plan_);
  }

 private:
  std::variant<PlanOf<float>, PlanOf<cpu::bfloat16>> plan_;
};

}  // namespace bertfast::plan
