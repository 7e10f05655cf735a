// Compiled for the baseline CPU, as all code but the kernels.

#include "dispatch.h"

#include <atomic>
#include <cstdlib>

#include "../check.h"

namespace bertfast::cpu {

namespace generic {
extern const Kernels table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
namespace avx512_vnni {
extern const Kernels table;
}
namespace avx512_bf16 {
extern const Kernels table;
}
#endif

namespace {

std::vector<Isa> find_isas() {
#if defined(__x86_64__)
  const bool avx2_here = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512_here = avx2_here && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool vnni_here = avx512_here && __builtin_cpu_supports("avx512vnni");
  const bool bf16_here = vnni_here && __builtin_cpu_supports("avx512bf16");  // no CPU has bfloat16 alone
  return {{&avx512_bf16::table, "avx512_bf16", bf16_here},
          {&avx512_vnni::table, "avx512_vnni", vnni_here},
          {&avx512::table, "avx512", avx512_here},
          {&avx2::table, "avx2", avx2_here},
          {&generic::table, "generic", true}};
#else
  return {{nullptr, "avx512_bf16", false},
          {nullptr, "avx512_vnni", false},
          {nullptr, "avx512", false},
          {nullptr, "avx2", false},
          {&generic::table, "generic", true}};
#endif
}

const Kernels* choose() {
  if (const char* wanted = std::getenv("BERTFAST_ISA"); wanted != nullptr && *wanted != '\0') return &table_named(wanted, "BERTFAST_ISA");
  for (const Isa& isa : isas())
    if (isa.table != nullptr && isa.runs_here) return isa.table;
  fail("this build has no kernels for this CPU; expected at least the generic ones");
}

std::atomic<const Kernels*>& chosen() {
  static std::atomic<const Kernels*> table{choose()};
  return table;
}

}  // namespace

const std::vector<Isa>& isas() {
  static const std::vector<Isa> found = find_isas();
  return found;
}

const Kernels& table_named(const std::string& name, const std::string& source) {
  std::string runnable, known;
  for (const Isa& isa : isas()) {
    known += (known.empty() ? "" : ", ") + isa.name;
    if (isa.table != nullptr && isa.runs_here) runnable += (runnable.empty() ? "" : ", ") + isa.name;
  }
  for (const Isa& isa : isas()) {
    if (isa.name != name) continue;
    BF_CHECK(isa.table != nullptr, source, "='", name,
             "': this build lacks it (it was compiled for another architecture); it can run: ", runnable);
    BF_CHECK(isa.runs_here, source, "='", name, "': this CPU lacks it; it can run: ", runnable);
    return *isa.table;
  }
  fail(source, "='", name, "': no such instruction set; expected one of: ", known);
}

const Kernels& kernels() { return *chosen().load(std::memory_order_relaxed); }
void use_kernels(const Kernels& table) { chosen().store(&table, std::memory_order_relaxed); }

}  // namespace bertfast::cpu
