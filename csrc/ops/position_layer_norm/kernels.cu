// CUDA kernels of `position_layer_norm`.
#include "cuda/ids.cuh"
#include "cuda/row_norm.cuh"
#include "cuda/sequences.cuh"
#include "ops/position_layer_norm/launch.h"

namespace ssept::cuda {
namespace {

template <class T>
__device__ __forceinline__ Sequences sequences_of(const PositionLayerNorm<T>& in) {
  return {in.cu_seqlens, in.num_sequences, in.num_tokens};
}

// Of gamma and beta, the row that a token has.
template <class T>
__device__ __forceinline__ int64_t parameters_row(const PositionLayerNorm<T>& in, int64_t n,
                                                  BadIdNote* note) {
  return in.by_position ? usable_position(in.positions[n], in.position_rows, note) : 0;
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
  const int warp = threadIdx.x / kWarpSize;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp;
  if (n >= in.num_tokens) return;
  if (n >= sequences_of(in).num_real()) {
    write_zeros<VEC>(out + n * in.width, in.width);
    return;
  }
  const int64_t position = parameters_row(in, n, note);
  normalise<VEC>(in.x + n * in.width, in.gamma + position * in.width, in.beta + position * in.width,
                 in.width, static_cast<A>(in.eps), out + n * in.width);
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
  const T *const row = in.x + n * in.width, *const gamma = in.gamma + position * in.width;
  const auto slope = NormSlope<A>::template of<VEC>(row, gamma, grad + n * in.width, in.width,
                                                    static_cast<A>(in.eps));
  if (lane == 0) {
    statistics[2 * n] = slope.of_row.mean;
    statistics[2 * n + 1] = slope.of_row.rstd;
  }
  for (int64_t i = lane * kQuad; i < in.width; i += kWarpSize * kQuad) {
    A g[kQuad];
    slope.template load_gradient<VEC>(row, gamma, grad + n * in.width, i, in.width, g);
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

// With one gamma and beta for all tokens: grad_x of a part of the rows, block x's, and the sums of
// theirs, (2, D) in `parts`.
template <class T, int VEC, class A = Accumulator<T>>
__global__ void __launch_bounds__(kSumThreads)
    backward_rows_kernel(PositionLayerNorm<T> in, const T* __restrict__ grad, T* grad_x,
                         A* __restrict__ parts, int64_t rows_of_part) {
  const ColumnSums sums(in.width);
  const int64_t begin = blockIdx.x * rows_of_part;
  const int64_t end = min(begin + rows_of_part, in.num_tokens);
  const int64_t end_of_real = max(begin, min(end, sequences_of(in).num_real()));
  A to_gamma[kQuad] = {}, to_beta[kQuad] = {};
  norm_backward<VEC>(
      RowNormBackward<T>{in.x, in.gamma, grad, nullptr, grad_x, in.num_tokens, in.width, in.eps},
      begin, end_of_real, sums, to_gamma, to_beta, [](int64_t) {});
  if (sums.works()) {
    const A zeros[kQuad] = {};
    for (int64_t n = end_of_real + sums.lane; n < end; n += sums.lanes)
      store_quad<VEC>(grad_x + n * in.width, sums.column, in.width, zeros);
  }
  A* const part = parts + blockIdx.x * 2 * in.width;
  sums.write(to_gamma, in.width, part);
  sums.write(to_beta, in.width, part + in.width);
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
int64_t PositionLayerNormKernels<T>::scratch(const PositionLayerNorm<T>& in) {
  return 2 * (in.by_position ? in.num_tokens : num_parts(in.num_tokens) * in.width);
}

template <class T>
cudaError_t PositionLayerNormKernels<T>::backward(const PositionLayerNorm<T>& in, const T* grad,
                                                  T* grad_x, A* scratch, A* grad_gamma,
                                                  A* grad_beta, BadIdNote* note,
                                                  cudaStream_t stream) {
  if (in.width == 0) return cudaSuccess;
  return with_pack_size<T>({in.width}, {in.x, in.gamma, grad, grad_x}, [&]<int VEC>() {
    if (!in.by_position) {
      const int64_t parts = num_parts(in.num_tokens);
      if (parts > 0) {
        const cudaError_t error = launch(
            backward_rows_kernel<T, VEC>, dim3(static_cast<unsigned>(parts), sum_blocks(in.width)),
            kSumThreads, 0, stream, in, grad, grad_x, scratch, rows_per_part(in.num_tokens));
        if (error != cudaSuccess) return error;
      }
      const int64_t row = 2 * in.width;
      return launch_sum_parts(
          PartsOf<A, 2>{{{scratch, parts, row, grad_gamma, in.width},
                         {scratch + in.width, parts, row, grad_beta, in.width}}},
          stream);
    }
    if (in.num_tokens > 0) {
      const cudaError_t error =
          launch(backward_x_kernel<T, VEC>, blocks_of_warps(in.num_tokens), kThreadsPerBlock, 0,
                 stream, in, grad, grad_x, scratch, note);
      if (error != cudaSuccess) return error;
    }
    if (in.position_rows == 0) return cudaSuccess;
    return launch(backward_positions_kernel<T, VEC>,
                  dim3(static_cast<unsigned>(in.position_rows), sum_blocks(in.width)), kSumThreads,
                  0, stream, in, grad, scratch, grad_gamma, grad_beta);
  });
}

template struct PositionLayerNormKernels<float>;
template struct PositionLayerNormKernels<double>;
template struct PositionLayerNormKernels<__half>;
template struct PositionLayerNormKernels<__nv_bfloat16>;

}  // namespace ssept::cuda
