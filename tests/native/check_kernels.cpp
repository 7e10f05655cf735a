// The CPU ops without Python, for machines that the Python tests do not reach, above all aarch64 under an emulator.
//
// Runs every op, on every instruction set of the machine, against its definition in double. Its error may be twice that of the definition
// in float, plus a unit in the last place. A row must have the same bits alone and in a batch, on any number of threads. Exits with 1 and
// says what failed.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../csrc/cpu/dispatch.h"
#include "../../csrc/cpu/ops.h"
#include "../../csrc/parallel.h"
#include "checks.h"

using namespace bertfast;

namespace {

using Floats = std::vector<float>;
const float nan = std::numeric_limits<float>::quiet_NaN();
int failures = 0, checks = 0;

}  // namespace

void report(bool good, const std::string& what) {
  ++checks;
  if (good) return;
  ++failures;
  std::printf("FAILED on %s: %s\n", cpu::kernels().isa, what.c_str());
}

namespace {

Floats random_floats(int64_t n, float scale, uint32_t seed, float mean = 0.0f) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(mean, scale);
  Floats values(static_cast<size_t>(n));
  for (float& v : values) v = normal(engine);
  return values;
}

// eps: machine epsilon of the result's type.
void compare(const std::string& what, const Floats& actual, const Floats& reference, const std::vector<double>& truth,
             double eps = std::numeric_limits<float>::epsilon()) {
  double error = 0.0, reference_error = 0.0, largest = 0.0;
  for (size_t i = 0; i < truth.size(); ++i) {
    if (!std::isfinite(actual[i])) return report(false, what + ": a value is not finite, or was not written");
    error = std::max(error, std::fabs(actual[i] - truth[i]));
    reference_error = std::max(reference_error, std::fabs(reference[i] - truth[i]));
    largest = std::max(largest, std::fabs(truth[i]));
  }
  const double allowed = 2.0 * reference_error + eps * largest;
  report(error <= allowed, what + ": worst error " + std::to_string(error / allowed) + " times the allowed one");
}

template <class Real>
Real gelu(Real x) {
  return x / 2 * std::erfc(-x / std::sqrt(Real(2)));
}

template <class Real>
std::vector<Real> define_linear(const Floats& x, const Floats& weight, const Floats& bias, int64_t M, int64_t K, int64_t N, bool activate) {
  std::vector<Real> out(static_cast<size_t>(M * N));
  for (int64_t m = 0; m < M; ++m)
    for (int64_t n = 0; n < N; ++n) {
      Real sum = 0;
      for (int64_t k = 0; k < K; ++k) sum += Real(x[m * K + k]) * Real(weight[n * K + k]);
      sum += Real(bias[n]);
      out[m * N + n] = activate ? gelu(sum) : sum;
    }
  return out;
}

Floats run_linear(const Floats& x, const Floats& weight, const Floats& bias, int64_t M, int64_t K, int64_t N, bool activate) {
  Floats out(static_cast<size_t>(M * N), nan);
  const auto activation = activate ? cpu::Activation::gelu : cpu::Activation::none;
  run_op(
      cpu::LinearOp<float>(cpu::kernels(), {{x.data(), weight.data(), bias.data(), out.data(), M, K, N, K, N, activation}}, num_threads()));
  return out;
}

void check_linear() {
  const int64_t shapes[][3] = {{1, 768, 40}, {4, 1024, 25}, {7, 101, 37},   {8, 3072, 13}, {16, 384, 96},
                               {13, 33, 18}, {61, 130, 50}, {55, 1024, 30}, {401, 96, 100}};
  for (const auto& [M, K, N] : shapes)
    for (const bool activate : {false, true}) {
      const Floats x = random_floats(M * K, 1.0f, 1), weight = random_floats(N * K, 0.05f, 2), bias = random_floats(N, 0.1f, 3);
      const std::string what = "linear " + std::to_string(M) + "x" + std::to_string(K) + "x" + std::to_string(N);
      const Floats out = run_linear(x, weight, bias, M, K, N, activate);
      compare(what, out, define_linear<float>(x, weight, bias, M, K, N, activate),
              define_linear<double>(x, weight, bias, M, K, N, activate));
      for (int64_t m = 0; m < M; m += M / 3 + 1) {
        const Floats row(x.begin() + m * K, x.begin() + (m + 1) * K), alone = run_linear(row, weight, bias, 1, K, N, activate);
        report(std::equal(alone.begin(), alone.end(), out.begin() + m * N), what + ": a row alone has different bits");
      }
      const int threads = num_threads();
      set_num_threads(3);
      report(run_linear(x, weight, bias, M, K, N, activate) == out, what + ": different bits on 3 threads");
      set_num_threads(threads);
    }
}

float widen(cpu::bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

void check_linear_bfloat16() {
  for (const int64_t M : {1, 8, 13, 70}) {
    const int64_t K = 200, N = 30;
    Floats x = random_floats(M * K, 1.0f, 1), weight = random_floats(N * K, 0.05f, 2), bias = random_floats(N, 0.1f, 3);
    std::vector<cpu::bfloat16> narrow[3], out(static_cast<size_t>(M * N));
    Floats* wide[] = {&x, &weight, &bias};
    for (int i = 0; i < 3; ++i)
      for (float& v : *wide[i]) {
        narrow[i].push_back(cpu::rounded(v, cpu::bfloat16{}));
        v = widen(narrow[i].back());
      }
    run_op(cpu::LinearOp<cpu::bfloat16>(
        cpu::kernels(), {{narrow[0].data(), narrow[1].data(), narrow[2].data(), out.data(), M, K, N, K, N, cpu::Activation::none}},
        num_threads()));
    Floats actual, reference;
    for (const cpu::bfloat16 v : out) actual.push_back(widen(v));
    for (const float v : define_linear<float>(x, weight, bias, M, K, N, false))
      reference.push_back(widen(cpu::rounded(v, cpu::bfloat16{})));
    compare("linear of bfloat16", actual, reference, define_linear<double>(x, weight, bias, M, K, N, false), 1.0 / 128);
  }
}

template <class Real>
void normalise(Real* row, const Floats& weight, const Floats& bias, int64_t H, float eps) {
  Real mean = 0, variance = 0;
  for (int64_t h = 0; h < H; ++h) mean += row[h] / Real(H);
  for (int64_t h = 0; h < H; ++h) variance += (row[h] - mean) * (row[h] - mean) / Real(H);
  for (int64_t h = 0; h < H; ++h) row[h] = (row[h] - mean) / std::sqrt(variance + Real(eps)) * Real(weight[h]) + Real(bias[h]);
}

void check_layer_norm() {
  for (const int64_t H : {1, 30, 312, 768}) {
    const int64_t R = 9;
    const float eps = 1e-12f;
    const Floats x = random_floats(R * H, 1.0f, 1, 50.0f), residual = random_floats(R * H, 1.0f, 2);  // a large mean
    const Floats weight = random_floats(H, 0.2f, 3, 1.0f), bias = random_floats(H, 0.1f, 4);
    Floats out(static_cast<size_t>(R * H), nan), reference;
    std::vector<double> truth;
    for (size_t i = 0; i < x.size(); ++i) {
      truth.push_back(double(x[i]) + double(residual[i]));
      reference.push_back(x[i] + residual[i]);
    }
    for (int64_t r = 0; r < R; ++r) {
      normalise(truth.data() + r * H, weight, bias, H, eps);
      normalise(reference.data() + r * H, weight, bias, H, eps);
    }
    run_op(cpu::AddLayerNormOp<float>(cpu::kernels(),
                                      {x.data(), residual.data(), weight.data(), bias.data(), out.data(), R, H, eps, nullptr}, 2));
    compare("add_layer_norm of " + std::to_string(H), out, reference, truth);
  }
}

void check_embedding() {
  const int64_t T = 7, H = 100, V = 20, P = 8, Y = 2;
  const float eps = 1e-12f;
  const Floats words = random_floats(V * H, 1.0f, 1), positions = random_floats(P * H, 1.0f, 2), types = random_floats(Y * H, 1.0f, 3);
  const Floats weight = random_floats(H, 0.2f, 4, 1.0f), bias = random_floats(H, 0.1f, 5);
  std::vector<int64_t> ids = {3, 19, 0, 7, 7, 1, 12}, position_ids = {0, 1, 2, 3, 0, 1, 7}, type_ids = {0, 1, 0, 1, 1, 0, 0};
  Floats out(static_cast<size_t>(T * H), nan), reference(out.size());
  std::vector<double> truth(out.size());
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t h = 0; h < H; ++h) {
      const float word = words[ids[t] * H + h], type = types[type_ids[t] * H + h], position = positions[position_ids[t] * H + h];
      truth[t * H + h] = double(word) + double(type) + double(position);
      reference[t * H + h] = word + type + position;
    }
    normalise(truth.data() + t * H, weight, bias, H, eps);
    normalise(reference.data() + t * H, weight, bias, H, eps);
  }
  const cpu::EmbedLayerNormArgs<float> args = {ids.data(),
                                               position_ids.data(),
                                               type_ids.data(),
                                               words.data(),
                                               nullptr,
                                               0,
                                               positions.data(),
                                               types.data(),
                                               V,
                                               P,
                                               Y,
                                               weight.data(),
                                               bias.data(),
                                               out.data(),
                                               T,
                                               H,
                                               eps,
                                               nullptr};
  const cpu::EmbedLayerNormOp<float> op(cpu::kernels(), args, 2);
  run_op(op);
  op.check_ids();
  compare("embed_layer_norm", out, reference, truth);
  ids[2] = V;  // must be refused and never read
  bool refused = false;
  try {
    run_op(op);
    op.check_ids();
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  report(refused, "embed_layer_norm: an id outside its table was accepted");
}

// out[D] = attention of one query over keys [first, last); rows of k and v are `stride` apart.
template <class Real>
void attend(const float* q, const float* k, const float* v, int64_t first, int64_t last, int64_t D, int64_t stride, Real* out) {
  std::vector<Real> scores;
  Real highest = -std::numeric_limits<Real>::infinity(), total = 0;
  for (int64_t j = first; j < last; ++j) {
    Real score = 0;
    for (int64_t d = 0; d < D; ++d) score += Real(q[d]) * Real(k[j * stride + d]);
    scores.push_back(score / std::sqrt(Real(D)));
    highest = std::max(highest, scores.back());
  }
  for (Real& score : scores) total += score = std::exp(score - highest);
  for (int64_t d = 0; d < D; ++d) {
    out[d] = 0;
    for (int64_t j = first; j < last; ++j) out[d] += scores[static_cast<size_t>(j - first)] / total * Real(v[j * stride + d]);
  }
}

void check_attention() {
  const std::vector<int32_t> cu = {0, 1, 1, 40, 207};  // one sequence empty, one longer than a tile
  const int64_t T = cu.back(), N = 2;
  for (const int64_t D : {8, 17, 64})
    for (const bool causal : {false, true}) {
      const int64_t H = N * D, stride = 3 * H;
      const Floats qkv = random_floats(T * stride, 1.0f, 1);
      Floats out(static_cast<size_t>(T * H), nan), reference(out.size());
      std::vector<double> truth(out.size());
      for (size_t b = 0; b + 1 < cu.size(); ++b)
        for (int64_t i = cu[b]; i < cu[b + 1]; ++i)
          for (int64_t n = 0; n < N; ++n) {
            const float *q = qkv.data() + i * stride + n * D, *k = qkv.data() + H + n * D, *v = k + H;
            const int64_t last = causal ? i + 1 : cu[b + 1];
            attend(q, k, v, cu[b], last, D, stride, reference.data() + i * H + n * D);
            attend(q, k, v, cu[b], last, D, stride, truth.data() + i * H + n * D);
          }
      const float scale = 1.0f / std::sqrt(static_cast<float>(D));
      run_op(cpu::VarlenAttentionOp<float>(cpu::kernels(),
                                           {qkv.data(), qkv.data() + H, qkv.data() + 2 * H, out.data(), stride, stride, stride, cu.data(),
                                            cu.data(), static_cast<int64_t>(cu.size()) - 1, N, D, scale, causal, false, T, T},
                                           2));
      compare("varlen_attention of D=" + std::to_string(D), out, reference, truth);
    }
}

void check_cached_attention() {
  const int64_t R = 3, N = 2, C = 50, D = 24, T = 4, H = N * D;
  const Floats q = random_floats(T * H, 1.0f, 1), keys = random_floats(R * N * C * D, 1.0f, 2),
               values = random_floats(R * N * C * D, 1.0f, 3);
  const std::vector<int64_t> rows = {2, 0, 1, 0}, first = {0, 5, 10, 49}, last = {50, 6, 47, 50};
  Floats out(static_cast<size_t>(T * H), nan), reference(out.size());
  std::vector<double> truth(out.size());
  for (int64_t t = 0; t < T; ++t)
    for (int64_t n = 0; n < N; ++n) {
      const int64_t at = (rows[t] * N + n) * C * D, to = t * H + n * D;
      attend(q.data() + to, keys.data() + at, values.data() + at, first[t], last[t], D, D, reference.data() + to);
      attend(q.data() + to, keys.data() + at, values.data() + at, first[t], last[t], D, D, truth.data() + to);
    }
  const float scale = 1.0f / std::sqrt(static_cast<float>(D));
  run_op(cpu::CachedAttentionOp<float>(cpu::kernels(),
                                       {q.data(),
                                        keys.data(),
                                        values.data(),
                                        rows.data(),
                                        first.data(),
                                        last.data(),
                                        out.data(),
                                        H,
                                        {N * C * D, C * D, D, N * C * D, C * D, D},
                                        T,
                                        N,
                                        D,
                                        scale,
                                        R,
                                        C},
                                       2));
  compare("cached_attention", out, reference, truth);
}

// int8: the result must be the product of the quantized rows and weights.
void check_int8() {
  for (const int64_t K : {64, 312, 768})
    for (const int64_t M : {1, 8, 53}) {
      const int64_t N = 70, blocks = cpu::hadamard_blocks(K), panels = cpu::hadamard_blocks(N), row = cpu::int8_row_bytes(K);
      const Floats x = random_floats(M * K, 1.0f, 1), bias = random_floats(N, 0.1f, 2);
      std::vector<char> q(static_cast<size_t>(M * row));
      run_op(cpu::Int8QuantizeOp(cpu::kernels(), {x.data(), q.data(), K, blocks, K, M}, 2));
      std::mt19937 engine(3);
      std::vector<uint8_t> weights(static_cast<size_t>(panels * blocks * 64 * 64));
      for (uint8_t& w : weights)
        w = static_cast<uint8_t>(engine() % 2 == 0 ? 255 : engine() % 256);  // often the largest value: nothing may saturate
      const int64_t groups = cpu::int8_groups(blocks);
      const Floats scales = random_floats(panels * groups * 64, 0.001f, 4, 0.01f);
      Floats out(static_cast<size_t>(M * N), nan), reference;
      std::vector<double> truth;
      for (int64_t m = 0; m < M; ++m) {
        const int8_t* at = reinterpret_cast<const int8_t*>(q.data()) + m * row;  // char has no sign on ARM
        // The rotation is its own inverse: quantized rows, rotated once more, must be x.
        for (int64_t g = 0; g < blocks; ++g) {
          float scale;
          std::memcpy(&scale, at + blocks * 64 + g * 4, sizeof scale);
          int32_t compensation, total = 0;
          std::memcpy(&compensation, at + blocks * 68 + g * 4, sizeof compensation);
          double error = 0.0;
          for (int64_t i = 0; i < 64; ++i) {
            total += at[g * 64 + i];
            double back = 0.0;
            for (int64_t j = 0; j < 64; ++j) {
              int parity = 0;
              for (int64_t both = i & j; both != 0; both &= both - 1) parity ^= 1;
              back += (parity ? -1.0 : 1.0) * at[g * 64 + j] * scale / 8.0;
            }
            const int64_t k = g * 64 + i;
            error = std::max(error, std::fabs(back - (k < K ? double(x[m * K + k]) : 0.0)));
          }
          report(error <= 4.0 * scale, "int8 quantize: rows rotated back are not x");  // 64 roundings of half a step, over 8
          report(compensation == -128 * total, "int8 quantize: the compensation of a block is wrong");
        }
        for (int64_t n = 0; n < N; ++n) {
          double sum = bias[n];
          float single = bias[n];
          for (int64_t g = 0; g < blocks; ++g) {
            float scale;
            std::memcpy(&scale, at + blocks * 64 + g * 4, sizeof scale);
            const uint8_t* panel = weights.data() + ((n / 64) * blocks + g) * 4096;
            int64_t products = 0;
            for (int64_t i = 0; i < 64; ++i) products += at[g * 64 + i] * (int64_t{panel[(i / 4 * 64 + n % 64) * 4 + i % 4]} - 128);
            const float weight_scale = scales[((n / 64) * groups + g / 2) * 64 + n % 64];
            sum += double(products) * double(scale) * double(weight_scale);
            single += float(products) * (scale * weight_scale);
          }
          truth.push_back(sum);
          reference.push_back(single);
        }
      }
      run_op(cpu::Int8LinearOp(
          cpu::kernels(),
          {{q.data(), weights.data(), scales.data(), bias.data(), out.data(), nullptr, blocks, N, N, 0, cpu::Activation::none, M}}, 2));
      compare("int8 linear of " + std::to_string(M) + "x" + std::to_string(K), out, reference, truth);
    }
}

struct Fails {  // item `thrower` throws, if there is one
  int64_t thrower;
  std::vector<int>& ran;
  int64_t items() const { return 64; }
  void run(int64_t item) const {
    if (item == thrower) throw std::runtime_error("item " + std::to_string(item));
    ran[static_cast<size_t>(item)] = 1;
  }
};

void check_threads() {
  for (const int threads : {1, 2, 5}) {
    set_num_threads(threads);
    for (const int64_t thrower : {0, 17, 63, 64}) {
      std::vector<int> ran(64, 0), ran_later(64, 0);
      const Fails first{thrower, ran}, later{64, ran_later};
      const Step steps[] = {step_of(first), step_of(later)};
      std::string said = "item 64";
      try {
        run_steps(steps, 2);
      } catch (const std::runtime_error& error) {
        said = error.what();
      }
      const bool all = std::count(ran.begin(), ran.end(), 1) == 64, after = std::count(ran_later.begin(), ran_later.end(), 1) == 64;
      const bool whole = thrower == 64, none_after = std::count(ran_later.begin(), ran_later.end(), 0) == 64;
      report(said == "item " + std::to_string(thrower) && (whole ? all && after : none_after),
             "the exception of an item on " + std::to_string(threads) + " threads: " + said);
    }
  }
  set_num_threads(2);
}

}  // namespace

int main() {
  set_num_threads(2);
  check_threads();
  check_allocation_failures();
  for (const cpu::Isa& isa : cpu::isas()) {
    if (isa.table == nullptr || !isa.runs_here) continue;
    cpu::use_kernels(*isa.table);
    const int before = checks;
    check_linear();
    check_linear_bfloat16();
    check_layer_norm();
    check_embedding();
    check_attention();
    check_cached_attention();
    check_int8();
    std::printf("%s: %d checks\n", isa.name.c_str(), checks - before);
  }
  std::printf("%d of %d checks failed\n", failures, checks);
  return failures == 0 && checks > 0 ? 0 : 1;
}
