// Launchers of the `causal_attention` kernels, for T in float, double, __half, __nv_bfloat16. They
// queue work on `stream`, never wait, and return the first error. kTf32, for float only: tensor
// cores compute the products, from inputs rounded to 10 bits.
#pragma once
#include <cuda_runtime_api.h>

#include <type_traits>

#include "cuda/parts.h"
#include "ops/causal_attention/params.h"

namespace ssept::cuda {

// double is there for exact gradients, not for training: no kernels of wide heads are compiled.
template <class T>
inline constexpr int64_t kMaxHeadSize = std::is_same_v<T, double> ? 128 : 256;

// With a relative bias, of any type.
inline constexpr int64_t kMaxBiasedHeadSize = 128;

template <class T, bool kTf32>
struct CausalAttentionKernels {
  static cudaError_t forward(const CausalAttentionWithBias<T>& in,
                             const CausalAttentionOutputs<T>& outputs, cudaStream_t stream);
  static cudaError_t backward(const CausalAttentionWithBias<T>& in,
                              const CausalAttentionGradients<T>& gradients, cudaStream_t stream);
  using A = Accumulator<T>;
  // Of `multi_head_attention`, what is left of the gradients of its biases and weights: the latter
  // may be parts to be added up.
  static cudaError_t finish_projections(const CausalAttentionSizes& size,
                                        const CausalAttentionGradients<T>& gradients,
                                        const PartsOf<A, 2>& weights, cudaStream_t stream);
  // The rows of bias_partial for each head.
  static int64_t bias_rows(const CausalAttentionSizes& size);
};

}  // namespace ssept::cuda
