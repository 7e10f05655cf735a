// Threads on the host without Python, for the sanitizers: the pool, plans, packing, and KV caches.
//
//     stress_threads [--seconds S] [--seed N] [--racy] [--leaky]
//
// Four callers compute random jobs on the one pool, through one shared plan among others, while a fifth thread changes the number of
// threads, which stops the pool and starts another. Every result must have the bits that one thread computed before. --racy also writes
// into a weight that the others read, and --leaky loses memory: the sanitizers must report it. Exits with 1 and says what failed.
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "../../csrc/batching/packer.h"
#include "../../csrc/batching/token_budget.h"
#include "../../csrc/cpu/dispatch.h"
#include "../../csrc/cpu/ops.h"
#include "../../csrc/kv_cache/slot_table.h"
#include "../../csrc/parallel.h"
#include "../../csrc/plan/plan.h"

using namespace bertfast;

namespace {

using Floats = std::vector<float>;
using Ids = std::vector<int64_t>;
using Random = std::mt19937;

constexpr int64_t H = 24, N = 3, D = H / N, I = 40, V = 50, P = 64, callers = 4, most_threads = 5;

std::atomic<int> failures{0}, jobs_done{0};

void require(bool good, const char* what) {
  if (good) return;
  ++failures;
  std::printf("FAILED: %s\n", what);
}

Floats random_floats(int64_t n, float scale, uint32_t seed, float mean = 0.0f) {
  Random engine(seed);
  std::normal_distribution<float> normal(mean, scale);
  Floats values(static_cast<size_t>(n));
  for (float& v : values) v = normal(engine);
  return values;
}

template <class T>
Address address(const T& values) {
  return reinterpret_cast<Address>(values.data());
}

// One layer: embeddings, attention, feed-forward, each with its LayerNorm.
class Layer {
 public:
  Layer() {
    using plan::CountOf;
    using plan::Ref;
    constexpr int64_t rows = 0, sequences = 1;  // row counts
    const auto slot = [](int64_t i) { return Ref{Ref::Kind::slot, i, 0}; };
    const auto constant = [](const Floats& w) { return Ref{Ref::Kind::constant, static_cast<int64_t>(address(w)), 0}; };
    auto& of_float = *plan_.as<float>();
    int64_t place = 0;
    const auto buffer = [&](int64_t columns) {
      const Ref made{Ref::Kind::buffer, plan_.add_buffer({rows, place, columns}), 0};
      place += columns;
      return made;
    };
    const Ref embedded = buffer(H), qkv = buffer(3 * H), attended = buffer(H), dense = buffer(H), up = buffer(I);

    plan::Recorded<cpu::EmbedLayerNormOp<float>::Args> embed;
    using Embed = cpu::EmbedLayerNormOp<float>::Args;
    embed.args.position_rows = P;
    embed.args.type_rows = 1;
    embed.args.word_rows = V;
    embed.args.hidden = H;
    embed.args.eps = 1e-12f;
    embed.rows(&Embed::input_ids, slot(0), 1);
    embed.rows(&Embed::position_ids, slot(1), 1);
    embed.whole(&Embed::word_table, constant(words));
    embed.whole(&Embed::position_table, constant(positions));
    embed.whole(&Embed::type_table, constant(types));
    embed.whole(&Embed::weight, constant(norm));
    embed.whole(&Embed::bias, constant(bias));
    embed.rows(&Embed::out, embedded, H);
    embed.count(&Embed::tokens, rows, CountOf::rows);
    of_float.add<cpu::EmbedLayerNormOp<float>>(std::move(embed));

    const auto linear = [&](const Ref& x, int64_t inputs, const std::vector<const Floats*>& weights, int64_t features, const Ref& out,
                            cpu::Activation activation) {
      using Args = cpu::LinearArgs<float>;
      plan::Recorded<cpu::LinearOp<float>::Args> op;
      const auto columns = features * static_cast<int64_t>(weights.size());
      for (size_t i = 0; i < weights.size(); ++i) {
        auto& part = op.parts.emplace_back();
        part.args.inputs = part.args.x_stride = inputs;
        part.args.features = features;
        part.args.out_stride = columns;
        part.args.activation = activation;
        part.rows(&Args::x, x, inputs);
        part.whole(&Args::weight, constant(*weights[i]));
        part.whole(&Args::bias, constant(bias));
        part.rows(&Args::out, out.at_column(static_cast<int64_t>(i) * features), columns);
        part.count(&Args::rows, rows, CountOf::rows);
      }
      of_float.add<cpu::LinearOp<float>>(std::move(op));
    };
    const auto add_norm = [&](const Ref& x, const Ref& residual, const Ref& out) {
      using Args = cpu::AddLayerNormOp<float>::Args;
      plan::Recorded<Args> op;
      op.args.hidden = H;
      op.args.eps = 1e-12f;
      op.rows(&Args::x, x, H);
      op.rows(&Args::residual, residual, H);
      op.whole(&Args::weight, constant(norm));
      op.whole(&Args::bias, constant(bias));
      op.rows(&Args::out, out, H);
      op.count(&Args::rows, rows, CountOf::rows);
      of_float.add<cpu::AddLayerNormOp<float>>(std::move(op));
    };

    linear(embedded, H, {&query, &key, &value}, H, qkv, cpu::Activation::none);
    using Attention = cpu::VarlenAttentionOp<float>::Args;
    plan::Recorded<Attention> attention;
    attention.args.q_stride = attention.args.k_stride = attention.args.v_stride = 3 * H;
    attention.args.heads = N;
    attention.args.head_size = D;
    attention.args.scale = 1.0f / std::sqrt(static_cast<float>(D));
    attention.rows(&Attention::q, qkv, 3 * H);
    attention.rows(&Attention::k, qkv.at_column(H), 3 * H);
    attention.rows(&Attention::v, qkv.at_column(2 * H), 3 * H);
    attention.rows(&Attention::out, attended, H);
    attention.boundaries(&Attention::cu_seqlens_q, slot(2));
    attention.boundaries(&Attention::cu_seqlens_k, slot(2));
    attention.count(&Attention::queries, rows, CountOf::rows);
    attention.count(&Attention::keys, rows, CountOf::rows);
    attention.count(&Attention::sequences, sequences, CountOf::sequences);
    of_float.add<cpu::VarlenAttentionOp<float>>(std::move(attention));
    linear(attended, H, {&query}, H, dense, cpu::Activation::none);
    add_norm(dense, embedded, dense);
    linear(dense, H, {&wide}, I, up, cpu::Activation::gelu);
    linear(up, I, {&narrow}, H, attended, cpu::Activation::none);
    add_norm(attended, dense, slot(3));
  }

  Floats run(const Ids& lengths, const Ids& ids) const {
    const auto B = static_cast<int64_t>(lengths.size());
    std::vector<int32_t> cu_seqlens(lengths.size() + 1);
    pack_lengths(lengths.data(), B, cu_seqlens.data());
    Ids position_ids;
    for (const int64_t length : lengths)
      for (int64_t i = 0; i < length; ++i) position_ids.push_back(i);
    Floats out(ids.size() * H);
    plan_.run({static_cast<int64_t>(ids.size()), B}, {address(ids), address(position_ids), address(cu_seqlens), address(out)});
    return out;
  }

  Floats words = random_floats(V * H, 1, 1), positions = random_floats(P * H, 1, 2), types = random_floats(H, 1, 3),
         norm = random_floats(H, 0.2f, 4, 1), bias = random_floats(I, 0.1f, 5), query = random_floats(H * H, 0.2f, 6),
         key = random_floats(H * H, 0.2f, 7), value = random_floats(H * H, 0.2f, 8), wide = random_floats(I * H, 0.2f, 9),
         narrow = random_floats(H * I, 0.2f, 10);

 private:
  plan::Plan plan_;
};

// A KV cache that every caller writes its own rows of and reads them back from.
struct Cache {
  static constexpr int64_t rows_each = 2, rows = rows_each * callers, C = 33;
  Floats keys = Floats(rows * N * C * D), values = keys;
  const cpu::CacheStrides strides{N * C * D, C* D, D, N* C* D, C* D, D};

  // `steps` decode steps of the rows of a caller: writes k and v, returns what the last query sees.
  Floats decode(int64_t caller, int64_t steps, const Floats& qkv) {
    Ids cache_rows;
    for (int64_t r = 0; r < rows_each; ++r) cache_rows.push_back(caller * rows_each + r);
    Floats out(rows_each * H);
    for (int64_t step = 0; step < steps; ++step) {
      const Ids at(rows_each, step), first(rows_each, 0), last(rows_each, step + 1);
      const float* q = qkv.data() + step * rows_each * 3 * H;
      run_op(cpu::WriteCacheOp<float>(
          cpu::kernels(),
          {q + H, q + 2 * H, keys.data(), values.data(), cache_rows.data(), at.data(), 3 * H, 3 * H, strides, rows_each, N, D, rows, C},
          num_threads()));
      run_op(cpu::CachedAttentionOp<float>(cpu::kernels(),
                                           {q, keys.data(), values.data(), cache_rows.data(), first.data(), last.data(), out.data(), 3 * H,
                                            strides, rows_each, N, D, 0.3f, rows, C},
                                           num_threads()));
    }
    return out;
  }
};

struct Stress {
  const Layer layer;
  Cache cache;
  std::vector<Ids> lengths;  // of batches
  std::vector<Ids> ids;
  std::vector<Floats> hidden;  // expected, as are the following
  Floats qkv = random_floats(Cache::C * Cache::rows_each * 3 * H, 1, 11);
  std::vector<Floats> decoded;
  Floats scores = random_floats(9 * V, 1, 12);
  Ids best;

  Stress() {
    set_num_threads(1);
    Random random(13);
    for (const Ids& batch : std::vector<Ids>{{1}, {7, 1, 0, 20}, {40, 40, 40, 40}, {64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64}}) {
      lengths.push_back(batch);
      Ids& tokens = ids.emplace_back();
      for (const int64_t length : batch)
        for (int64_t i = 0; i < length; ++i) tokens.push_back(static_cast<int64_t>(random() % V));
      hidden.push_back(layer.run(batch, tokens));
    }
    for (int64_t steps = 1; steps <= Cache::C; ++steps) decoded.push_back(cache.decode(0, steps, qkv));
    best = argmax();
  }

  Ids argmax() const {
    Ids out(9);
    run_op(cpu::ArgmaxOp(cpu::kernels(), {scores.data(), out.data(), 9, V}, num_threads()));
    return out;
  }

  void replay(Random& random) {
    const size_t i = random() % ids.size();
    require(layer.run(lengths[i], ids[i]) == hidden[i], "a replay has other bits");
  }

  void refuse(Random& random) {  // an exception in the middle of a step
    const size_t i = random() % ids.size();
    Ids wrong = ids[i];
    wrong[random() % wrong.size()] = V;
    try {
      layer.run(lengths[i], wrong);
      require(false, "an id outside its table was accepted");
    } catch (const std::invalid_argument&) {
    }
  }

  void decode(int64_t caller, Random& random) {
    const int64_t steps = 1 + random() % Cache::C;
    require(cache.decode(caller, steps, qkv) == decoded[static_cast<size_t>(steps) - 1], "a decode step has other bits");
  }

  void choose_tokens() { require(argmax() == best, "argmax differs"); }

  static void pack(Random& random) {
    const int64_t rows = 1 + random() % 8, columns = 1 + random() % 30;
    std::vector<uint8_t> mask(static_cast<size_t>(rows * columns));
    int64_t total = 0;
    for (uint8_t& cell : mask) total += cell = random() % 2;
    std::vector<int32_t> cu_seqlens(static_cast<size_t>(rows) + 1);
    Ids indices(mask.size()), columns_of(mask.size());
    const Packed packed =
        pack_mask(mask.data(), MaskKind::boolean, rows, columns, columns, cu_seqlens.data(), indices.data(), columns_of.data());
    require(packed.total == total && cu_seqlens.back() == total, "packing lost a token");
    Floats x = random_floats(rows * columns * H, 1, 14), gathered(static_cast<size_t>(total * H)), back(x.size());
    run_op(cpu::PackOp(cpu::kernels(),
                       {reinterpret_cast<const char*>(x.data()), indices.data(), reinterpret_cast<char*>(gathered.data()), rows * columns,
                        total, H * static_cast<int64_t>(sizeof(float))},
                       num_threads()));
    run_op(cpu::UnpackOp<float>(cpu::kernels(), {gathered.data(), indices.data(), back.data(), total, rows * columns, H, 0.0f},
                                num_threads()));
    bool same = true;
    for (size_t i = 0; i < x.size(); ++i) same &= back[i] == (mask[i / H] != 0 ? x[i] : 0.0f);
    require(same, "unpack of pack is another matrix");
  }

  static void batch(Random& random) {
    Ids lengths(1 + random() % 40), order(lengths.size());
    for (int64_t& length : lengths) length = static_cast<int64_t>(random() % 50);
    const Ids cuts = plan_batches(lengths.data(), static_cast<int64_t>(lengths.size()), 100, 7, order.data());
    require(!cuts.empty() && cuts.back() == static_cast<int64_t>(lengths.size()), "a text is in no batch");
    SlotTable table(4, 50);
    table.admit({3, 5});
    table.extend(2);
    table.reorder({1, 1, 0});
    table.crop(1);
    table.check_integrity();
  }

  void caller(int64_t number, uint32_t seed, const std::atomic<bool>& stop) {
    Random random(seed + static_cast<uint32_t>(number));
    const std::function<void()> jobs[] = {[&] { replay(random); }, [&] { decode(number, random); }, [&] { choose_tokens(); },
                                          [&] { refuse(random); }, [&] { pack(random); },           [&] { batch(random); },
                                          [&] { replay(random); }};
    while (!stop) {
      jobs[random() % std::size(jobs)]();
      ++jobs_done;
    }
  }
};

void change_threads(uint32_t seed, const std::atomic<bool>& stop) {
  Random random(seed);
  while (!stop) {
    set_num_threads(static_cast<int>(random() % (most_threads + 1)));
    update_default_threads(1 + static_cast<int>(random() % most_threads));
    std::this_thread::sleep_for(std::chrono::milliseconds(random() % 20));
  }
}

}  // namespace

int main(int argc, char** argv) {
  double seconds = 10;
  uint32_t seed = 0;
  bool racy = false, leaky = false;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--racy")
      racy = true;
    else if (argument == "--leaky")
      leaky = true;
    else if (argument == "--seconds" && i + 1 < argc)
      seconds = std::atof(argv[++i]);
    else if (argument == "--seed" && i + 1 < argc)
      seed = static_cast<uint32_t>(std::atol(argv[++i]));
    else
      return std::printf("usage: stress_threads [--seconds S] [--seed N] [--racy] [--leaky]\n"), 2;
  }
  Stress stress;
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int64_t number = 0; number < callers; ++number) threads.emplace_back([&, number] { stress.caller(number, seed, stop); });
  threads.emplace_back([&] { change_threads(seed, stop); });
  if (racy)
    threads.emplace_back([&] {
      float& weight = const_cast<float&>(stress.layer.query[0]);
      for (const float same = weight; !stop; std::this_thread::yield()) weight = same;
    });
  if (leaky) std::thread([] { new Stress; }).join();
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
  stop = true;
  for (std::thread& thread : threads) thread.join();
  set_num_threads(1);
  std::printf("%d jobs, seed %u: %d failed\n", jobs_done.load(), seed, failures.load());
  return failures == 0 && jobs_done > 0 ? 0 : 1;
}
