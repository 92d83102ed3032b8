// Copies from global to shared memory that run while their thread goes on.
#pragma once
#include "cuda/launch.cuh"

namespace ssept::cuda {

// Starts to copy VEC elements, to and from addresses aligned to their size. Copies of fewer than 4
// bytes are done at once.
template <int VEC, class T>
__device__ __forceinline__ void copy_async(T* to, const T* from) {
  constexpr int kBytes = VEC * sizeof(T);
  static_assert(kBytes == 2 || kBytes == 4 || kBytes == 8 || kBytes == 16);
#ifndef SSEPT_CUDA_EMULATION
  if constexpr (kBytes >= 4) {
    const auto address = static_cast<unsigned>(__cvta_generic_to_shared(to));
    if constexpr (kBytes == 16)  // past the L1 cache
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from)
                   : "memory");
    else
      asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(address), "l"(from),
                   "n"(kBytes)
                   : "memory");
    return;
  }
#endif
  *reinterpret_cast<Pack<T, VEC>*>(to) = *reinterpret_cast<const Pack<T, VEC>*>(from);
}

// Waits for all copies this thread has started; others see them after a barrier.
__device__ __forceinline__ void wait_for_copies() {
#ifndef SSEPT_CUDA_EMULATION
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

}  // namespace ssept::cuda
