#include "cpu/simd.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <stdexcept>
#include <string>

namespace ssept::cpu {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512"};

SimdLevel level_of_machine() {
#if defined(__x86_64__) && defined(__clang__)  // which knew no levels before version 17
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return SimdLevel::kAvx512;
  if (has_avx2) return SimdLevel::kAvx2;
#elif defined(__x86_64__) && defined(__GNUC__)
  if (__builtin_cpu_supports("x86-64-v4")) return SimdLevel::kAvx512;
  if (__builtin_cpu_supports("x86-64-v3")) return SimdLevel::kAvx2;
#endif
  return SimdLevel::kBaseline;
}

SimdLevel level_allowed() {
  const char* value = std::getenv("SSEPT_SIMD");
  if (!value) return SimdLevel::kAvx512;
  const auto name = std::find(std::begin(kNames), std::end(kNames), std::string(value));
  if (name == std::end(kNames))
    throw std::invalid_argument("SSEPT_SIMD must be baseline, avx2 or avx512, got \"" +
                                std::string(value) + "\"");
  return static_cast<SimdLevel>(name - std::begin(kNames));
}

}  // namespace

SimdLevel simd_level() {
  static const SimdLevel level = std::min(level_of_machine(), level_allowed());
  return level;
}

const char* simd_name() { return kNames[static_cast<int>(simd_level())]; }

}  // namespace ssept::cpu
