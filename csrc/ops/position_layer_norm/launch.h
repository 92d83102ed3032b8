// Launchers of the `position_layer_norm` kernels, for T in float, double, __half, __nv_bfloat16.
// They queue work on `stream`, never wait, and return the first error.
#pragma once
#include <cuda_runtime_api.h>

#include "common/accumulator.h"
#include "cuda/bad_id.h"
#include "ops/position_layer_norm/params.h"

namespace ssept::cuda {

template <class T>
struct PositionLayerNormKernels {
  using A = Accumulator<T>;

  static cudaError_t forward(const PositionLayerNorm<T>& in, T* out, BadIdNote* note,
                             cudaStream_t stream);

  // Elements of scratch that the backward needs.
  static int64_t scratch(const PositionLayerNorm<T>& in);

  // grad_gamma and grad_beta, like gamma, are summed in a fixed order.
  static cudaError_t backward(const PositionLayerNorm<T>& in, const T* grad, T* grad_x, A* scratch,
                              A* grad_gamma, A* grad_beta, BadIdNote* note, cudaStream_t stream);
};

}  // namespace ssept::cuda
