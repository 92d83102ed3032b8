// CUDA kernels of `position_layer_norm`.
#include "cuda/column_sums.cuh"
#include "cuda/ids.cuh"
#include "cuda/sequences.cuh"
#include "ops/position_layer_norm/launch.h"

namespace ssept::cuda {
namespace {

template <class T>
__device__ __forceinline__ Sequences sequences_of(const PositionLayerNorm<T>& in) {
  return {in.cu_seqlens, in.num_sequences, in.num_tokens};
}

// Mean of a row, and 1 / sqrt(variance + eps).
template <class A>
struct Statistics {
  A mean, rstd;
};

__device__ __forceinline__ float reciprocal_root(float x) { return rsqrtf(x); }
__device__ __forceinline__ double reciprocal_root(double x) { return rsqrt(x); }

// By one warp, in two passes over the row: the second finds it in the L1 cache.
template <int VEC, class T, class A = Accumulator<T>>
__device__ __forceinline__ Statistics<A> statistics_of(const T* row, int64_t width, A eps) {
  const int first = threadIdx.x % kWarpSize * kQuad;
  A sum = 0;
  for (int64_t i = first; i < width; i += kWarpSize * kQuad) {
    A x[kQuad];
    load_quad<VEC>(row, i, width, x);
#pragma unroll
    for (int j = 0; j < kQuad; ++j) sum += x[j];
  }
  const A mean = group_sum<kWarpSize>(sum) / static_cast<A>(width);
  A squares = 0;
  for (int64_t i = first; i < width; i += kWarpSize * kQuad) {
    A x[kQuad];
    load_quad<VEC>(row, i, width, x);
#pragma unroll
    for (int j = 0; j < kQuad; ++j)
      if (i + j < width) squares += (x[j] - mean) * (x[j] - mean);
  }
  const A variance = group_sum<kWarpSize>(squares) / static_cast<A>(width);
  return {mean, reciprocal_root(variance + eps)};
}

template <int VEC, class T>
__device__ __forceinline__ void write_zeros(T* row, int64_t width) {
  const Accumulator<T> zeros[kQuad] = {};
  for (int64_t i = threadIdx.x % kWarpSize * kQuad; i < width; i += kWarpSize * kQuad)
    store_quad<VEC>(row, i, width, zeros);
}

// One warp for one token.
template <class T, int VEC>
__global__ void __launch_bounds__(kThreadsPerBlock)
    forward_kernel(PositionLayerNorm<T> in, T* __restrict__ out, BadIdNote* note) {
  using A = Accumulator<T>;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp;
  if (n >= in.num_tokens) return;
  if (n >= sequences_of(in).num_real()) {
    write_zeros<VEC>(out + n * in.width, in.width);
    return;
  }
  const int64_t position = usable_position(in.positions[n], in.position_rows, note);
  const T* row = in.x + n * in.width;
  const auto [mean, rstd] = statistics_of<VEC>(row, in.width, static_cast<A>(in.eps));
  for (int64_t i = lane * kQuad; i < in.width; i += kWarpSize * kQuad) {
    A x[kQuad], gamma[kQuad], beta[kQuad];
    load_quad<VEC>(row, i, in.width, x);
    load_quad<VEC>(in.gamma + position * in.width, i, in.width, gamma);
    load_quad<VEC>(in.beta + position * in.width, i, in.width, beta);
#pragma unroll
    for (int j = 0; j < kQuad; ++j) x[j] = (x[j] - mean) * rstd * gamma[j] + beta[j];
    store_quad<VEC>(out + n * in.width, i, in.width, x);
  }
}

// One warp for one token: grad_x, and the statistics for the next kernel.
template <class T, int VEC, class A = Accumulator<T>>
__global__ void __launch_bounds__(kThreadsPerBlock)
    backward_x_kernel(PositionLayerNorm<T> in, const T* __restrict__ grad, T* __restrict__ grad_x,
                      A* __restrict__ statistics, BadIdNote* note) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp;
  if (n >= in.num_tokens) return;
  if (n >= sequences_of(in).num_real()) {
    write_zeros<VEC>(grad_x + n * in.width, in.width);
    return;
  }
  const int64_t position = usable_position(in.positions[n], in.position_rows, note);
  const T* row = in.x + n * in.width;
  const T* gamma_row = in.gamma + position * in.width;
  const auto [mean, rstd] = statistics_of<VEC>(row, in.width, static_cast<A>(in.eps));
  if (lane == 0) {
    statistics[2 * n] = mean;
    statistics[2 * n + 1] = rstd;
  }
  A sum = 0, dot = 0;
  for (int64_t i = lane * kQuad; i < in.width; i += kWarpSize * kQuad) {
    A x[kQuad], g[kQuad], gamma[kQuad];
    load_quad<VEC>(row, i, in.width, x);
    load_quad<VEC>(grad + n * in.width, i, in.width, g);
    load_quad<VEC>(gamma_row, i, in.width, gamma);
#pragma unroll
    for (int j = 0; j < kQuad; ++j) {
      sum += g[j] * gamma[j];  // 0 from the width on
      dot += g[j] * gamma[j] * (x[j] - mean);
    }
  }
  const A mean_grad = group_sum<kWarpSize>(sum) / static_cast<A>(in.width);
  const A slope = group_sum<kWarpSize>(dot) / static_cast<A>(in.width) * rstd * rstd;
  for (int64_t i = lane * kQuad; i < in.width; i += kWarpSize * kQuad) {
    A x[kQuad], g[kQuad], gamma[kQuad];
    load_quad<VEC>(row, i, in.width, x);
    load_quad<VEC>(grad + n * in.width, i, in.width, g);
    load_quad<VEC>(gamma_row, i, in.width, gamma);
#pragma unroll
    for (int j = 0; j < kQuad; ++j)
      g[j] = rstd * (g[j] * gamma[j] - mean_grad - slope * (x[j] - mean));
    store_quad<VEC>(grad_x + n * in.width, i, in.width, g);
  }
}

// Block x for position x: grad_gamma = Σ grad · normalised x, grad_beta = Σ grad over its tokens.
template <class T, int VEC, class A = Accumulator<T>>
__global__ void __launch_bounds__(kSumThreads)
    backward_positions_kernel(PositionLayerNorm<T> in, const T* __restrict__ grad,
                              const A* __restrict__ statistics, A* __restrict__ grad_gamma,
                              A* __restrict__ grad_beta) {
  const ColumnSums sums(in.width);
  A to_gamma[kQuad] = {}, to_beta[kQuad] = {};
  for_each_token_at(blockIdx.x, in.positions, in.position_rows, sequences_of(in).num_real(), sums,
                    [&](int64_t n) {
                      const A mean = statistics[2 * n], rstd = statistics[2 * n + 1];
                      A x[kQuad], g[kQuad];
                      load_quad<VEC>(in.x + n * in.width, sums.column, in.width, x);
                      load_quad<VEC>(grad + n * in.width, sums.column, in.width, g);
#pragma unroll
                      for (int j = 0; j < kQuad; ++j) {
                        to_gamma[j] += g[j] * (x[j] - mean) * rstd;
                        to_beta[j] += g[j];
                      }
                    });
  sums.reduce(to_gamma);
  sums.reduce(to_beta);
  if (sums.lane != 0) return;
  store_quad<VEC>(grad_gamma + blockIdx.x * in.width, sums.column, in.width, to_gamma);
  store_quad<VEC>(grad_beta + blockIdx.x * in.width, sums.column, in.width, to_beta);
}

}  // namespace

template <class T>
cudaError_t PositionLayerNormKernels<T>::forward(const PositionLayerNorm<T>& in, T* out,
                                                 BadIdNote* note, cudaStream_t stream) {
  if (in.num_tokens == 0 || in.width == 0) return cudaSuccess;
  return with_pack_size<T>({in.width}, {in.x, in.gamma, in.beta, out}, [&]<int VEC>() {
    return launch(forward_kernel<T, VEC>, blocks_of_warps(in.num_tokens), kThreadsPerBlock, 0,
                  stream, in, out, note);
  });
}

template <class T>
cudaError_t PositionLayerNormKernels<T>::backward(const PositionLayerNorm<T>& in, const T* grad,
                                                  T* grad_x, A* statistics, A* grad_gamma,
                                                  A* grad_beta, BadIdNote* note,
                                                  cudaStream_t stream) {
  if (in.width == 0) return cudaSuccess;
  return with_pack_size<T>({in.width}, {in.x, in.gamma, grad, grad_x}, [&]<int VEC>() {
    if (in.num_tokens > 0) {
      const cudaError_t error =
          launch(backward_x_kernel<T, VEC>, blocks_of_warps(in.num_tokens), kThreadsPerBlock, 0,
                 stream, in, grad, grad_x, statistics, note);
      if (error != cudaSuccess) return error;
    }
    if (in.position_rows == 0) return cudaSuccess;
    return launch(backward_positions_kernel<T, VEC>,
                  dim3(static_cast<unsigned>(in.position_rows), sum_blocks(in.width)), kSumThreads,
                  0, stream, in, grad, statistics, grad_gamma, grad_beta);
  });
}

template struct PositionLayerNormKernels<float>;
template struct PositionLayerNormKernels<double>;
template struct PositionLayerNormKernels<__half>;
template struct PositionLayerNormKernels<__nv_bfloat16>;

}  // namespace ssept::cuda
