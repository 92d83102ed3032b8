// Launchers of the `gated_residual` and `swiglu` kernels, for T in float, double, __half,
// __nv_bfloat16. They queue work on `stream`, never wait, and return the first error.
#pragma once
#include <cuda_runtime_api.h>

#include "ops/gated_residual/params.h"

namespace ssept::cuda {

template <class T>
struct GatedResidualKernels {
  static cudaError_t forward(const GatedResidual<T>& in, T* out, cudaStream_t stream);

  // `in.x` is the gradient. grad_gate is not written without a gate.
  static cudaError_t backward(const GatedResidual<T>& in, T* grad_y, T* grad_gate,
                              cudaStream_t stream);
};

template <class T>
struct SwigluKernels {
  static cudaError_t forward(const Swiglu<T>& in, T* out, cudaStream_t stream);
  static cudaError_t backward(const Swiglu<T>& in, const T* grad, T* grad_u, cudaStream_t stream);
};

}  // namespace ssept::cuda
