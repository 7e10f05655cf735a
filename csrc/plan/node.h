// What a plan records of an op: the argument struct of the op (cpu/kernels.h), and beside it where each replay finds the addresses and
// row counts to fill into it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <variant>
#include <vector>

#include "../cpu/ops.h"

namespace bertfast::plan {

// Where an operand lies.
struct Ref {
  enum class Kind : int { none, constant, slot, buffer, count };
  Kind kind = Kind::none;
  int64_t value = 0;   // an address, or the index of a slot or a buffer
  int64_t column = 0;  // of a slot or a buffer: elements from the start of the row

  Ref at_column(int64_t n) const { return {kind, value, column + n}; }
};
inline bool operator==(const Ref& a, const Ref& b) { return a.kind == b.kind && a.value == b.value && a.column == b.column; }

// The result of an op, in the arena of a row count.
struct Buffer {
  int64_t rows;     // which row count
  int64_t place;    // its first column in that arena
  int64_t columns;  // its width
};

// How an operand belongs to the sequences of a batch, for replays that compute some of them apart (bands.h).
enum class Extent { whole, rows, boundaries };  // of no sequence, as weights; [rows, ...]; cu_seqlens

struct Operand {
  size_t offset;  // of the pointer in the argument struct
  Ref ref;
  Extent extent;
  int64_t row_bytes;  // of Extent::rows in a slot: from one row to the next
};

enum class CountOf { rows, sequences, other };

struct RowCount {
  size_t offset;  // of the int64_t in the argument struct
  int64_t symbol;
  CountOf of;
};

// An argument struct whose sizes and flags are known; resolver knows what a replay brings.
template <class Args>
class Recorded {
 public:
  Args args{};

  template <class T>
  void whole(T* Args::* member, const Ref& ref) {
    operands_.push_back({offset_of(member), ref, Extent::whole, 0});
  }
  // columns: elements of T from one row to the next where ref is a slot.
  template <class T>
  void rows(T* Args::* member, const Ref& ref, int64_t columns) {
    operands_.push_back({offset_of(member), ref, Extent::rows, columns * static_cast<int64_t>(sizeof(T))});
  }
  void boundaries(const int32_t* Args::* member, const Ref& ref) { operands_.push_back({offset_of(member), ref, Extent::boundaries, 0}); }
  void count(int64_t Args::* member, int64_t symbol, CountOf of) { counts_.push_back({offset_of(member), symbol, of}); }

  template <class Resolver>
  Args bind(const Resolver& resolver) const {
    Args bound = args;
    char* to = reinterpret_cast<char*>(&bound);
    for (const Operand& operand : operands_) {
      const void* address = resolver.address(operand);
      std::memcpy(to + operand.offset, &address, sizeof address);
    }
    for (const RowCount& count : counts_) {
      const int64_t value = resolver.count(count.symbol);
      std::memcpy(to + count.offset, &value, sizeof value);
    }
    return bound;
  }

  template <class OfOperand, class OfCount>
  void visit(OfOperand of_operand, OfCount of_count) const {
    for (const Operand& operand : operands_) of_operand(operand);
    for (const RowCount& count : counts_) of_count(count);
  }

 private:
  template <class Member>
  size_t offset_of(Member Args::* member) const {
    return static_cast<size_t>(reinterpret_cast<const char*>(&(args.*member)) - reinterpret_cast<const char*>(&args));
  }

  std::vector<Operand> operands_;
  std::vector<RowCount> counts_;
};

// Of an op on several weights: the arguments for each.
template <class Args, size_t most>
class Recorded<InlineVector<Args, most>> {
 public:
  std::vector<Recorded<Args>> parts;

  template <class Resolver>
  InlineVector<Args, most> bind(const Resolver& resolver) const {
    InlineVector<Args, most> bound;
    for (const Recorded<Args>& part : parts) bound.push_back(part.bind(resolver));
    return bound;
  }

  template <class OfOperand, class OfCount>
  void visit(OfOperand of_operand, OfCount of_count) const {
    for (const Recorded<Args>& part : parts) part.visit(of_operand, of_count);
  }
};

template <class Op>
struct Node {
  Recorded<typename Op::Args> recorded;
};

// The ops that a plan of Number may hold.
template <class... Ops>
struct OpList {
  using AnyNode = std::variant<Node<Ops>...>;
  using BoundOp = std::variant<std::monostate, Ops...>;
};

template <class Number, class... Others>
using OpsOf = OpList<cpu::EmbedLayerNormOp<Number>, cpu::AddLayerNormOp<Number>, cpu::LinearOp<Number>, cpu::VarlenAttentionOp<Number>,
                     cpu::PackOp, cpu::UnpackOp<Number>, cpu::WriteCacheOp<Number>, cpu::CachedAttentionOp<Number>, Others...>;

template <class Number>
struct PlanOps : OpsOf<Number> {};
template <>
struct PlanOps<float> : OpsOf<float, cpu::EmbedLayerNormOp<float, uint8_t>, cpu::Int8QuantizeOp, cpu::Int8LinearOp> {};

}  // namespace bertfast::plan
