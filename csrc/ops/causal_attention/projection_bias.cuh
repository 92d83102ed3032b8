// Sums for the gradients of the projections of `multi_head_attention`.
#pragma once
#include <algorithm>

#include "cuda/parts.h"
#include "ops/causal_attention/tiles.cuh"

namespace ssept::cuda::attention {

constexpr int kSumThreads = 512;

// Of a weight: a thread adds up the parts of one element.
template <class A>
__device__ __forceinline__ void add_up(const Parts<A>& in) {
  const int64_t i = int64_t{blockIdx.x} * kSumThreads + threadIdx.x;
  if (i >= in.width) return;
  A sum = 0;
#pragma unroll 8
  for (int64_t part = 0; part < in.num_parts; ++part) sum += in.parts[part * in.row + i];
  in.sum[i] = sum;
}

// grad_bias: the sums of the gradients of queries and values (blockIdx.y) over all tokens, in a
// fixed order; zeros for keys, whose bias softmax does not see. A block sums the columns that
// memory delivers together. Further blocks, of other y, add up the parts of the weights' gradients.
template <class M, class T = typename M::Element, class A = Accumulator<T>>
__global__ void __launch_bounds__(kSumThreads)
    projections_kernel(CausalAttentionGradients<T> g, int64_t num_queries, int64_t num_keys,
                       int64_t width, int copy_bytes, PartsOf<A, 2> weights) {
  if constexpr (std::is_same_v<T, A>) {  // the half types have no such parts
    if (blockIdx.y == 2) return add_up(weights.of[0]);
    if (blockIdx.y == 3) return add_up(weights.of[1]);
    if (int64_t{blockIdx.x} * (32 / sizeof(T)) >= width) return;
  }
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

}  // namespace ssept::cuda::attention

namespace ssept::cuda {

template <class T, bool kTf32>
cudaError_t CausalAttentionKernels<T, kTf32>::finish_projections(
    const CausalAttentionSizes& size, const CausalAttentionGradients<T>& g,
    const PartsOf<A, 2>& weights, cudaStream_t stream) {
  using M = attention::Arithmetic<T, kTf32>;
  const int64_t width = size.num_heads * size.head_size, columns = 32 / sizeof(T);
  const int64_t most = std::max(weights.of[0].width, weights.of[1].width);
  const int64_t blocks = std::max((width - 1) / columns + 1,
                                  (most + attention::kSumThreads - 1) / attention::kSumThreads);
  return launch(attention::projections_kernel<M>,
                dim3(static_cast<unsigned>(blocks), most > 0 ? 4 : 2), attention::kSumThreads, 0,
                stream, g, size.num_queries, size.num_keys, width,
                attention::bytes_per_copy<T>(width, g.grad_q, g.grad_v), weights);
}

}  // namespace ssept::cuda
