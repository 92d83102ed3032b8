// Launching kernels, and what every kernel file needs. Torch-free; also compiled by g++ for the CPU
// emulation of the tests, whose rules are in tests/cuda_emulation/README.md.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "common/accumulator.h"

// The one dynamic shared array of the project.
extern __shared__ __align__(16) unsigned char smem_raw[];

namespace ssept::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;
inline constexpr int kWarpSize = 32;
// Of kernels in which each warp has work of its own.
inline constexpr int kWarpsPerBlock = 4, kThreadsPerBlock = kWarpsPerBlock * kWarpSize;

template <class T>
__device__ __forceinline__ Accumulator<T> widen(T x) {
  if constexpr (std::is_same_v<T, __half>)
    return __half2float(x);
  else if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __bfloat162float(x);
  else
    return x;
}

template <class T>
__device__ __forceinline__ T narrow(Accumulator<T> x) {
  if constexpr (std::is_same_v<T, __half>)
    return __float2half_rn(x);
  else if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __float2bfloat16_rn(x);
  else
    return x;
}

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

// Starts what a later kernel adds to, without a launch of its own: with `from`, or with zeros if
// that is null. All threads of the grid share it.
template <class T>
__device__ __forceinline__ void share_start(Accumulator<T>* x, const T* from, int64_t count) {
  const int64_t block = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * gridDim.y * blockDim.x;
  for (int64_t i = block * blockDim.x + threadIdx.x; i < count; i += threads)
    x[i] = from == nullptr ? Accumulator<T>(0) : widen(from[i]);
}

// VEC elements that one load moves.
template <class T, int VEC>
struct alignas(sizeof(T) * VEC) Pack {
  T value[VEC];
};

// The grid for so many warps, each with work of its own.
inline dim3 blocks_of_warps(int64_t warps, int64_t y = 1) {
  return dim3(static_cast<unsigned>((warps + kWarpsPerBlock - 1) / kWarpsPerBlock),
              static_cast<unsigned>(y));
}

// The first error of the launch, as a value: nothing is left behind for an unrelated call to find.
template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t smem_bytes,
                   cudaStream_t stream, Args... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = smem_bytes;
  config.stream = stream;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

}  // namespace ssept::cuda
