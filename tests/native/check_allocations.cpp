// The C++ host with each of its allocations failing in turn: an error or the right result, nothing leaked (the build with
// AddressSanitizer tells), and the next call right.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <limits>
#include <new>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "../../csrc/batching/token_budget.h"
#include "../../csrc/cpu/dispatch.h"
#include "../../csrc/cpu/ops.h"
#include "../../csrc/kv_cache/slot_table.h"
#include "../../csrc/parallel.h"
#include "../../csrc/plan/bands.h"
#include "../../csrc/plan/plan.h"
#include "checks.h"
#include "operator_delete.h"

using namespace bertfast;

namespace {

enum class Mode { none, one, all_later };  // which allocations fail once `left` others are done
std::atomic<Mode> mode{Mode::none};
std::atomic<int> left{0};

bool fails() {
  const Mode now = mode.load();
  if (now == Mode::none) return false;
  const int before = left.fetch_sub(1);
  return now == Mode::one ? before == 0 : before <= 0;
}

void* allocate(size_t bytes, size_t alignment) {
  const size_t whole = (std::max(bytes, size_t{1}) + alignment - 1) / alignment * alignment;
  void* memory = fails() ? nullptr : std::aligned_alloc(alignment, whole);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

// All forms: AddressSanitizer would answer those that are left, and miss the allocation that another form frees.
constexpr size_t usual = alignof(std::max_align_t);
void* operator new(size_t bytes) { return allocate(bytes, usual); }
void* operator new[](size_t bytes) { return allocate(bytes, usual); }
void* operator new(size_t bytes, std::align_val_t alignment) { return allocate(bytes, static_cast<size_t>(alignment)); }
void* operator new[](size_t bytes, std::align_val_t alignment) { return allocate(bytes, static_cast<size_t>(alignment)); }
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return fails() ? nullptr : std::malloc(bytes); }
void* operator new[](size_t bytes, const std::nothrow_t&) noexcept { return fails() ? nullptr : std::malloc(bytes); }

namespace {

constexpr int most_allocations = 5000;

// Calls run() on a thread of its own, whose arenas and scratch are empty, with allocation 0, 1, 2, ... failing, until it needs no more: it
// throws std::bad_alloc or returns true. Then, with none failing, it returns true.
template <class Run>
void sweep(const std::string& what, Run run) {
  for (const Mode failing : {Mode::one, Mode::all_later})
    for (int n = 0;; ++n) {
      if (n == most_allocations) return report(false, what + ": needs " + std::to_string(n) + " allocations");
      const std::string name = what + ": allocation " + std::to_string(n) + (failing == Mode::one ? "" : " and all later");
      bool failed = false, right = false, other = false, needed = false, right_after = false;
      std::thread([&] {
        left = n;
        mode = failing;
        try {
          right = run();
        } catch (const std::bad_alloc&) {
          failed = true;
        } catch (const std::exception&) {
          other = true;
        }
        mode = Mode::none;
        needed = left < 0;
        right_after = run();
      }).join();
      report(!other, name + ": another error than std::bad_alloc");
      report(failed || right, name + ": a wrong result");
      report(right_after, name + ": the next call is wrong");
      if (!needed) break;
    }
}

// Calls change() once more where an allocation of it fails; unchanged() tells whether that left everything as it was.
template <class Change, class Unchanged>
auto again(Change change, Unchanged unchanged) {
  try {
    return change();
  } catch (const std::bad_alloc&) {
    mode = Mode::none;
    report(unchanged(), "a change whose allocation failed was made in part");
    return change();
  }
}
template <class Change>
auto again(Change change) {
  return again(change, [] { return true; });
}

struct Counted {  // each of its items counts
  std::vector<std::atomic<int>>& ran;
  int64_t items() const { return static_cast<int64_t>(ran.size()); }
  void run(int64_t item) const { ran[static_cast<size_t>(item)] = 1; }
};

// The next run starts a pool of so many threads.
void drop_pool(int threads) {
  set_num_threads(threads + 1);
  std::vector<std::atomic<int>> ran(8);
  run_op(Counted{ran});
  set_num_threads(threads);
}

std::vector<float> random_floats(int64_t n, uint32_t seed, float scale = 1.0f) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(static_cast<size_t>(n));
  for (float& v : values) v = normal(engine);
  return values;
}

void check_pool() {
  std::vector<std::atomic<int>> ran(64);
  for (const int threads : {2, 4})
    sweep("a pool of " + std::to_string(threads) + " threads", [&] {
      const Mode failing = mode.exchange(Mode::none);
      drop_pool(threads);
      for (std::atomic<int>& each : ran) each = 0;
      mode = failing;
      run_op(Counted{ran});
      return std::all_of(ran.begin(), ran.end(), [](const std::atomic<int>& each) { return each == 1; });
    });
}

constexpr int64_t H = 64, N = 2, V = 50, P = 64;  // hidden size, heads, vocabulary, positions
constexpr int64_t panels = 1, blocks = 1;         // of an int8 weight [H, H]

struct Weights {
  std::vector<float> words = random_floats(V * H, 1), positions = random_floats(P * H, 2), types = random_floats(H, 3);
  std::vector<float> norm = random_floats(H, 4), bias = random_floats(H, 5), qkv = random_floats(3 * H * H, 6, 0.1f);
  std::vector<float> out = random_floats(H * H, 7, 0.1f), scales = random_floats(panels * 64, 8, 0.01f);
  std::vector<uint8_t> int8;

  Weights() {
    std::mt19937 engine(9);
    for (int64_t i = 0; i < panels * blocks * 64 * 64; ++i) int8.push_back(static_cast<uint8_t>(engine() % 256));
  }
};

using plan::CountOf;
using plan::Plan;
using plan::PlanOf;
using plan::Recorded;
using plan::Ref;

Ref constant(const void* weight) { return {Ref::Kind::constant, static_cast<int64_t>(reinterpret_cast<Address>(weight)), 0}; }
Ref slot(int64_t i) { return {Ref::Kind::slot, i, 0}; }
Ref buffer(int64_t i) { return {Ref::Kind::buffer, i, 0}; }

enum Slots : int64_t { ids, position_ids, cu_seqlens, first_rows, all_rows, hidden_out, pooled_out, padded_out, slot_count };
enum Counts : int64_t { rows, sequences, count_count };

// Adds one op to a plan, again where an allocation fails, which must change nothing: size() tells.
template <class Op, class Fill>
void add(PlanOf<float>& plan, Fill fill) {
  const int64_t size = plan.size();
  again(
      [&] {
        Recorded<typename Op::Args> recorded;
        fill(recorded);
        plan.add<Op>(std::move(recorded));
      },
      [&] { return plan.size() == size; });
}

void add_linear(PlanOf<float>& plan, const Ref& x, const Weights& weights, int64_t parts, const float* weight, const Ref& out,
                int64_t count) {
  add<cpu::LinearOp<float>>(plan, [&](auto& recorded) {
    using Args = cpu::LinearArgs<float>;
    for (int64_t i = 0; i < parts; ++i) {
      Recorded<Args>& part = recorded.parts.emplace_back();
      part.args.inputs = part.args.features = part.args.x_stride = H;
      part.args.out_stride = parts * H;
      part.args.activation = cpu::Activation::gelu;
      part.rows(&Args::x, x, H);
      part.whole(&Args::weight, constant(weight + i * H * H));
      part.whole(&Args::bias, constant(weights.bias.data()));
      part.rows(&Args::out, out.at_column(i * H), parts * H);
      part.count(&Args::rows, count, CountOf::rows);
    }
  });
}

// An encoder layer, an int8 product, a first row and an unpacking: an op of each kind but those on a KV cache.
void record(Plan& whole, const Weights& weights) {
  PlanOf<float>& plan = *whole.as<float>();
  const int64_t columns[] = {H, 3 * H, H, H, H, cpu::int8_row_bytes(H) / int64_t{sizeof(float)} + 1, H};
  std::vector<Ref> made;
  int64_t place = 0;
  for (const int64_t width : columns) {
    const auto add_buffer = [&] { return plan.add_buffer({rows, place, width}); };
    made.push_back(buffer(again(add_buffer)));
    place += width;
  }
  add<cpu::EmbedLayerNormOp<float>>(plan, [&](auto& op) {
    using Args = cpu::EmbedLayerNormArgs<float>;
    op.args.word_rows = V;
    op.args.position_rows = P;
    op.args.type_rows = 1;
    op.args.hidden = H;
    op.args.eps = 1e-12f;
    op.rows(&Args::input_ids, slot(ids), 1);
    op.rows(&Args::position_ids, slot(position_ids), 1);
    op.whole(&Args::word_table, constant(weights.words.data()));
    op.whole(&Args::position_table, constant(weights.positions.data()));
    op.whole(&Args::type_table, constant(weights.types.data()));
    op.whole(&Args::weight, constant(weights.norm.data()));
    op.whole(&Args::bias, constant(weights.bias.data()));
    op.rows(&Args::out, made[0], H);
    op.count(&Args::tokens, rows, CountOf::rows);
  });
  add_linear(plan, made[0], weights, 3, weights.qkv.data(), made[1], rows);
  add<cpu::VarlenAttentionOp<float>>(plan, [&](auto& op) {
    using Args = cpu::VarlenAttentionArgs<float>;
    op.args.q_stride = op.args.k_stride = op.args.v_stride = 3 * H;
    op.args.heads = N;
    op.args.head_size = H / N;
    op.args.scale = 0.2f;
    op.rows(&Args::q, made[1], 3 * H);
    op.rows(&Args::k, made[1].at_column(H), 3 * H);
    op.rows(&Args::v, made[1].at_column(2 * H), 3 * H);
    op.rows(&Args::out, made[2], H);
    op.boundaries(&Args::cu_seqlens_q, slot(cu_seqlens));
    op.boundaries(&Args::cu_seqlens_k, slot(cu_seqlens));
    op.count(&Args::queries, rows, CountOf::rows);
    op.count(&Args::keys, rows, CountOf::rows);
    op.count(&Args::sequences, sequences, CountOf::sequences);
  });
  add_linear(plan, made[2], weights, 1, weights.out.data(), made[3], rows);
  add<cpu::AddLayerNormOp<float>>(plan, [&](auto& op) {
    using Args = cpu::AddLayerNormArgs<float>;
    op.args.hidden = H;
    op.args.eps = 1e-12f;
    op.rows(&Args::x, made[3], H);
    op.rows(&Args::residual, made[0], H);
    op.whole(&Args::weight, constant(weights.norm.data()));
    op.whole(&Args::bias, constant(weights.bias.data()));
    op.rows(&Args::out, made[4], H);
    op.count(&Args::rows, rows, CountOf::rows);
  });
  add<cpu::Int8QuantizeOp>(plan, [&](auto& op) {
    using Args = cpu::Int8QuantizeArgs;
    op.args.inputs = op.args.x_stride = H;
    op.args.blocks = blocks;
    op.rows(&Args::x, made[4], H);
    op.rows(&Args::out, made[5], cpu::int8_row_bytes(H));
    op.count(&Args::rows, rows, CountOf::rows);
  });
  add<cpu::Int8LinearOp>(plan, [&](auto& op) {
    using Args = cpu::Int8LinearArgs;
    Recorded<Args>& part = op.parts.emplace_back();
    part.args.blocks = part.args.out_blocks = blocks;
    part.args.features = part.args.out_stride = H;
    part.args.activation = cpu::Activation::none;
    part.rows(&Args::x, made[5], cpu::int8_row_bytes(H));
    part.whole(&Args::panels, constant(weights.int8.data()));
    part.whole(&Args::scales, constant(weights.scales.data()));
    part.whole(&Args::bias, constant(weights.bias.data()));
    part.rows(&Args::out, slot(hidden_out), H);
    part.count(&Args::rows, rows, CountOf::rows);
  });
  add<cpu::PackOp>(plan, [&](auto& op) {
    using Args = cpu::PackArgs;
    op.args.row_bytes = H * int64_t{sizeof(float)};
    op.whole(&Args::x, slot(hidden_out));
    op.whole(&Args::indices, slot(first_rows));
    op.whole(&Args::out, slot(pooled_out));
    op.count(&Args::rows, rows, CountOf::other);
    op.count(&Args::tokens, sequences, CountOf::other);
  });
  add<cpu::UnpackOp<float>>(plan, [&](auto& op) {
    using Args = cpu::UnpackArgs<float>;
    op.args.columns = H;
    op.whole(&Args::x, made[4]);
    op.whole(&Args::indices, slot(all_rows));
    op.whole(&Args::out, slot(padded_out));
    op.count(&Args::tokens, rows, CountOf::other);
    op.count(&Args::rows, rows, CountOf::other);
  });
}

// A batch of sequences of one length, and what a plan leaves of it.
struct Batch {
  std::vector<int64_t> counts, ids, positions, firsts, all;
  std::vector<int32_t> boundaries;
  std::vector<float> hidden, pooled, padded;

  Batch(int64_t count, int64_t length) : counts{count * length, count} {
    for (int64_t b = 0; b <= count; ++b) boundaries.push_back(static_cast<int32_t>(b * length));
    for (int64_t t = 0; t < count * length; ++t) {
      ids.push_back(t * 7 % V);
      positions.push_back(t % length);
      all.push_back(t);
    }
    for (int64_t b = 0; b < count; ++b) firsts.push_back(b * length);
    clear();
  }

  void clear() {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    hidden.assign(ids.size() * H, nan);
    padded = hidden;
    pooled.assign(firsts.size() * H, nan);
  }

  std::vector<Address> slots() {
    std::vector<Address> found(slot_count);
    const std::pair<Slots, const void*> inputs[] = {{Slots::ids, ids.data()},        {Slots::position_ids, positions.data()},
                                                    {cu_seqlens, boundaries.data()}, {first_rows, firsts.data()},
                                                    {all_rows, all.data()},          {hidden_out, hidden.data()},
                                                    {pooled_out, pooled.data()},     {padded_out, padded.data()}};
    for (const auto& [slot, data] : inputs) found[static_cast<size_t>(slot)] = reinterpret_cast<Address>(data);
    return found;
  }

  bool operator==(const Batch& other) const { return hidden == other.hidden && pooled == other.pooled && padded == other.padded; }
};

void check_plans() {
  const Weights weights;
  for (const auto& [count, length] : {std::pair<int64_t, int64_t>{2, 5}, {16, 40}}) {
    Batch expected(count, length);
    set_num_threads(1);
    Plan plan;
    record(plan, weights);
    plan.run(expected.counts, expected.slots());
    report(std::all_of(expected.hidden.begin(), expected.hidden.end(), [](float v) { return std::isfinite(v); }), "a plan's result");
    Batch batch(count, length);
    sweep("recording a plan", [&] {
      Plan recorded;
      record(recorded, weights);
      batch.clear();
      recorded.run(batch.counts, batch.slots());
      return batch == expected;
    });
    for (const int threads : {1, 2, 4}) {
      const bool banded = !plan::cut_into_bands(batch.boundaries.data(), count, threads).empty();
      report(banded == (count == 16), "whether a batch is cut into bands");
      const std::vector<Address> slots = batch.slots();
      sweep("a replay on " + std::to_string(threads) + " threads" + (banded ? " in bands" : ""), [&] {
        const Mode failing = mode.exchange(Mode::none);
        drop_pool(threads);
        batch.clear();
        mode = failing;
        plan.run(batch.counts, slots);
        return batch == expected;
      });
    }
  }
  set_num_threads(2);
}

void check_ops_alone() {
  constexpr int64_t M = 5, K = 3072, F = 13, positions = 40;  // rows that lie 12 KiB apart are copied first
  const std::vector<float> x = random_floats(M * K, 1), weight = random_floats(F * K, 2), bias = random_floats(F, 3);
  std::vector<float> out(M * F), expected;
  const auto run = [&] {
    out.assign(out.size(), 0.0f);
    run_op(cpu::LinearOp<float>(cpu::kernels(), {{x.data(), weight.data(), bias.data(), out.data(), M, K, F, K, F, cpu::Activation::none}},
                                num_threads()));
    return expected.empty() || out == expected;
  };
  run();
  expected = out;
  sweep("linear", run);

  const std::vector<float> q = random_floats(M * H, 4), cache = random_floats(M * N * positions * (H / N), 5);
  const std::vector<int64_t> cache_rows = {0, 1, 2, 3, 4}, last = {40, 1, 7, 20, 39};
  std::vector<float> attended(M * H), attended_expected;
  const auto attend = [&] {
    attended.assign(attended.size(), 0.0f);
    const int64_t D = H / N;
    run_op(cpu::CachedAttentionOp<float>(cpu::kernels(),
                                         {q.data(),
                                          cache.data(),
                                          cache.data(),
                                          cache_rows.data(),
                                          nullptr,
                                          last.data(),
                                          attended.data(),
                                          H,
                                          {N * positions * D, positions * D, D, N * positions * D, positions * D, D},
                                          M,
                                          N,
                                          D,
                                          0.2f,
                                          M,
                                          positions},
                                         num_threads()));
    return attended_expected.empty() || attended == attended_expected;
  };
  attend();
  attended_expected = attended;
  sweep("cached_attention", attend);
}

void check_slot_table() {
  using Copies = std::vector<std::vector<int64_t>>;
  struct Seen {
    std::vector<int64_t> admitted, running, lengths;
    Copies copies;
    bool operator==(const Seen& other) const {
      return admitted == other.admitted && running == other.running && lengths == other.lengths && copies == other.copies;
    }
  };
  const auto use = [] {
    SlotTable table = again([] { return SlotTable(6, 12); });
    Seen seen;
    std::vector<int64_t> running, lengths;
    const auto remember = [&] {
      const Mode failing = mode.exchange(Mode::none);
      running = table.running();
      lengths = table.lengths();
      mode = failing;
    };
    const auto unchanged = [&] {
      table.check_integrity();
      return table.running() == running && table.lengths() == lengths;
    };
    remember();
    seen.admitted = again([&] { return table.admit({3, 5}); }, unchanged);
    remember();
    for (const std::vector<int64_t>& parents : std::vector<std::vector<int64_t>>{{0, 0, 1, 1}, {3, 3, 3, 0}, {1}, {0, 0, 0, 0, 0}}) {
      for (const auto& [from, to, first, last] : again([&] { return table.reorder(parents); }, unchanged))
        seen.copies.push_back({from, to, first, last});
      table.extend(1);
      remember();
    }
    table.crop(1);
    const Mode failing = mode.exchange(Mode::none);
    table.check_integrity();
    seen.running = table.running();
    seen.lengths = table.lengths();
    mode = failing;
    return seen;
  };
  const Seen expected = use();
  sweep("SlotTable", [&] { return use() == expected; });
}

void check_token_budget() {
  const std::vector<int64_t> lengths = {5, 90, 1, 7, 60, 3, 3, 8, 44, 2, 0, 6};
  std::vector<int64_t> order(lengths.size());
  const auto plan = [&] { return plan_batches(lengths.data(), static_cast<int64_t>(lengths.size()), 64, 4, order.data()); };
  const std::vector<int64_t> expected = plan();
  sweep("plan_batches", [&] { return plan() == expected; });
}

}  // namespace

void check_allocation_failures() {
  check_pool();
  check_plans();
  check_ops_alone();
  check_slot_table();
  check_token_budget();
  set_num_threads(2);
}
