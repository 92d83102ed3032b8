// Takes the place of the CUDA toolkit's header of this name, so that an unchanged .cu file compiles
// with g++ and runs on the CPU, for tests of its correctness. See the README beside this folder.
#pragma once
#ifdef __CUDACC__
#error "this header emulates CUDA on the CPU: it is not for nvcc"
#endif

#include <cuda_runtime_api.h>  // the toolkit's own: types, enums and prototypes
#include <vector_functions.h>

#include <tuple>
#include <utility>

#include "emulation/collectives.h"
#include "emulation/emulator.h"
#include "emulation/intrinsics.h"

// The toolkit's headers above have defined these for host compilers, with other meanings.
#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __shared__
#undef __launch_bounds__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __constant__ static
// The one storage class that is right for both "__shared__ T x[N];" in a function (where it implies
// static) and "extern __shared__ T x[];". It also puts all shared memory in one block of addresses:
// the library's thread-local storage, which the emulator fills with NaN and the race detector tells
// from global memory.
#define __shared__ constinit thread_local
#define __launch_bounds__(...)
#define __grid_constant__

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const std::tuple<Parameters...> parameters(std::forward<Arguments>(arguments)...);
  return cuda_emulation::launch(reinterpret_cast<const void*>(kernel), *config,
                                [&] { std::apply(kernel, parameters); });
}

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
