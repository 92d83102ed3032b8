// Launchers of the `position_layer_norm` kernels, for T in float, double, __half, __nv_bfloat16. A
// is float, or double for double. They queue work on `stream`, never wait, and return the first
// error.
#pragma once
#include <cuda_runtime_api.h>

#include "cuda/bad_id.h"
#include "ops/position_layer_norm/params.h"

namespace ssept::cuda {

template <class T>
cudaError_t launch_position_layer_norm(const PositionLayerNorm<T>& in, T* out, BadIdNote* note,
                                       cudaStream_t stream);

// statistics is scratch, (N, 2). grad_gamma and grad_beta, (T, D), are summed in a fixed order.
template <class T, class A>
cudaError_t launch_position_layer_norm_backward(const PositionLayerNorm<T>& in, const T* grad,
                                                T* grad_x, A* statistics, A* grad_gamma,
                                                A* grad_beta, BadIdNote* note, cudaStream_t stream);

}  // namespace ssept::cuda
