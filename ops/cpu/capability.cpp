// Which of the kernels that are compiled per instruction set this machine runs.
#include <cstdlib>
#include <string>

#include "../ms_deform_attn.h"
#include "kernels.h"

namespace ddetr {
namespace {

const Capability& choose_capability() {
#if defined(__x86_64__)
  const char* variable = std::getenv("DDETR_CPU_CAPABILITY");
  const std::string limit = variable ? variable : "";
  check(
      limit.empty() || limit == "default" || limit == "avx2" || limit == "avx512",
      "DDETR_CPU_CAPABILITY must be default, avx2 or avx512, got ", limit);
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl");
  if (avx512 && (limit.empty() || limit == "avx512")) return capability_avx512;
  if (avx2 && limit != "default") return capability_avx2;
#endif
  return capability_default;
}

}  // namespace

const Capability& capability() {
  static const Capability& chosen = choose_capability();
  return chosen;
}

}  // namespace ddetr
