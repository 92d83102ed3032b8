// The gradient of the biases of `multi_head_attention`'s projections.
#pragma once
#include "ops/causal_attention/tiles.cuh"

namespace ssept::cuda::attention {

constexpr int kSumThreads = 512;

// grad_bias: the sums of the gradients of queries and values (blockIdx.y) over all tokens, in a
// fixed order; zeros for keys, whose bias softmax does not see. A block sums the columns that
// memory delivers together.
template <class M, class T = typename M::Element, class A = Accumulator<T>>
__global__ void __launch_bounds__(kSumThreads)
    bias_kernel(CausalAttentionGradients<T> g, int64_t num_queries, int64_t num_keys, int64_t width,
                int copy_bytes) {
  constexpr int kColumns = 32 / sizeof(T);
  __shared__ A partial[kSumThreads * 16 / sizeof(T)];
  const bool of_values = blockIdx.y == 1;
  const int64_t num_rows = of_values ? num_keys : num_queries;
  const int64_t row = of_values ? g.grad_kv_row : width;
  const int64_t first = int64_t{blockIdx.x} * kColumns;
  for_copies_of<T>(copy_bytes, [&]<int VEC>() {
    constexpr int kPacks = kColumns / VEC, kLanes = kSumThreads / kPacks;
    const int lane = threadIdx.x / kPacks, pack = threadIdx.x % kPacks * VEC;
    const T* const from = (of_values ? g.grad_v : g.grad_q) + first + pack;
    A sum[VEC] = {};
    if (first + pack < width)
#pragma unroll 8
      for (int64_t n = lane; n < num_rows; n += kLanes) {
        const auto x = *reinterpret_cast<const Pack<T, VEC>*>(from + n * row);
#pragma unroll
        for (int e = 0; e < VEC; ++e) sum[e] += widen(x.value[e]);
      }
#pragma unroll
    for (int e = 0; e < VEC; ++e) partial[lane * kColumns + pack + e] = sum[e];
    for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) {
      __syncthreads();
      for (int i = threadIdx.x; i < lanes * kColumns; i += kSumThreads)
        partial[i] += partial[i + lanes * kColumns];
    }
  });
  __syncthreads();
  const int64_t column = first + threadIdx.x;
  if (threadIdx.x >= kColumns || column >= width) return;
  g.grad_bias[(of_values ? 2 : 0) * width + column] = partial[threadIdx.x];
  if (of_values) g.grad_bias[width + column] = 0;
}

// Only where there is such a gradient.
template <class M, class T>
cudaError_t launch_projection_bias(const CausalAttention<T>& in,
                                   const CausalAttentionGradients<T>& g, cudaStream_t stream) {
  if (g.grad_bias == nullptr) return cudaSuccess;
  const int64_t width = in.size.num_heads * in.size.head_size, columns = 32 / sizeof(T);
  return launch(bias_kernel<M>, dim3(static_cast<unsigned>((width - 1) / columns + 1), 2),
                kSumThreads, 0, stream, g, in.size.num_queries, in.size.num_keys, width,
                bytes_per_copy<T>(width, g.grad_q, g.grad_v));
}

}  // namespace ssept::cuda::attention
