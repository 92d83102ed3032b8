#include "cpu/simd.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <stdexcept>
#include <string>

namespace ssept::cpu {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "avx512_bf16"};

#if defined(__x86_64__) && defined(__GNUC__)
SimdLevel level_of_avx512() {
  return __builtin_cpu_supports("avx512bf16") ? SimdLevel::kAvx512Bf16 : SimdLevel::kAvx512;
}
#endif

SimdLevel level_of_machine() {
#if defined(__x86_64__) && defined(__clang__)  // which knew no levels before version 17
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return level_of_avx512();
  if (has_avx2) return SimdLevel::kAvx2;
#elif defined(__x86_64__) && defined(__GNUC__)
  if (__builtin_cpu_supports("x86-64-v4")) return level_of_avx512();
  if (__builtin_cpu_supports("x86-64-v3")) return SimdLevel::kAvx2;
#endif
  return SimdLevel::kBaseline;
}

SimdLevel level_allowed() {
  const char* value = std::getenv("SSEPT_SIMD");
  if (!value) return SimdLevel::kAvx512Bf16;
  const auto name = std::find(std::begin(kNames), std::end(kNames), std::string(value));
  if (name == std::end(kNames))
    throw std::invalid_argument("SSEPT_SIMD must be baseline, avx2, avx512 or avx512_bf16, got \"" +
                                std::string(value) + "\"");
  return static_cast<SimdLevel>(name - std::begin(kNames));
}

}  // namespace

SimdLevel find_simd_level() { return std::min(level_of_machine(), level_allowed()); }

const char* simd_name() { return kNames[static_cast<int>(simd_level())]; }

}  // namespace ssept::cpu
