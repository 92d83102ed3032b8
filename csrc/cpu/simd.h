// Which instructions the kernels use that are compiled for several kinds of registers.
#pragma once

namespace ssept::cpu {

enum class SimdLevel { kBaseline, kAvx2, kAvx512, kAvx512Bf16 };

// The widest that this machine has, and at most what the environment variable SSEPT_SIMD says:
// "baseline", "avx2", "avx512" or "avx512_bf16". Throws std::invalid_argument for anything else.
SimdLevel find_simd_level();

// The same, found once.
inline SimdLevel simd_level() {
  static const SimdLevel level = find_simd_level();
  return level;
}

// `simd_level` as SSEPT_SIMD would say it.
const char* simd_name();

}  // namespace ssept::cpu
