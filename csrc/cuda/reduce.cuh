// Sums over neighbouring lanes of a warp.
#pragma once
#include "cuda/launch.cuh"

namespace ssept::cuda {

// The sum over each aligned group of LANES lanes, in all of them. Every lane of the warp must call
// it.
template <int LANES, class T>
__device__ __forceinline__ T group_sum(T value) {
  static_assert(LANES > 0 && LANES <= kWarpSize && (LANES & (LANES - 1)) == 0);
#pragma unroll
  for (int offset = LANES / 2; offset > 0; offset /= 2)
    value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

}  // namespace ssept::cuda
