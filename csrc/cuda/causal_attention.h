// Launchers of the `causal_attention` kernels, for T in float, double, __half, __nv_bfloat16. A is
// float, or double for double. They queue work on `stream`, never wait, and return the first error.
// allow_tf32: products of float may be computed by tensor cores, from inputs rounded to 10 bits.
#pragma once
#include <cuda_runtime_api.h>

#include "common/causal_attention.h"

namespace ssept::cuda {

template <class T, class A>
cudaError_t launch_causal_attention(const CausalAttention<T>& in, T* out, A* lse, bool allow_tf32,
                                    cudaStream_t stream);

// delta is scratch of Nq · H elements.
template <class T, class A>
cudaError_t launch_causal_attention_backward(const CausalAttention<T>& in, const T* grad_out,
                                             const T* out, const A* lse, A* delta, T* grad_q,
                                             T* grad_k, T* grad_v, bool allow_tf32,
                                             cudaStream_t stream);

}  // namespace ssept::cuda
