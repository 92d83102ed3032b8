// Launchers of the `causal_attention` kernels, for T in float, double, __half, __nv_bfloat16. They
// queue work on `stream`, never wait, and return the first error. kTf32, for float only: tensor
// cores compute the products, from inputs rounded to 10 bits.
#pragma once
#include <cuda_runtime_api.h>

#include <type_traits>

#include "common/accumulator.h"
#include "ops/causal_attention/params.h"

namespace ssept::cuda {

// double is there for exact gradients, not for training: no kernels of wide heads are compiled.
template <class T>
inline constexpr int64_t kMaxHeadSize = std::is_same_v<T, double> ? 128 : 256;

template <class T, bool kTf32>
struct CausalAttentionKernels {
  using A = Accumulator<T>;

  static cudaError_t forward(const CausalAttention<T>& in, T* out, A* lse, cudaStream_t stream);

  // delta is scratch of Nq · H elements.
  static cudaError_t backward(const CausalAttention<T>& in, const T* grad_out, const T* out,
                              const A* lse, A* delta, T* grad_q, T* grad_k, T* grad_v,
                              cudaStream_t stream);
};

}  // namespace ssept::cuda
