// Layer norms of rows, each by one warp.
#pragma once
#include "common/row_norm.h"
#include "cuda/column_sums.cuh"

namespace ssept::cuda {

// Mean of a row, and 1 / sqrt(variance + eps).
template <class A>
struct Statistics {
  A mean, rstd;
};

__device__ __forceinline__ float reciprocal_root(float x) { return rsqrtf(x); }
__device__ __forceinline__ double reciprocal_root(double x) { return rsqrt(x); }

// In two passes over the row: the second finds it in the L1 cache.
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

template <int VEC, class T, class A = Accumulator<T>>
__device__ __forceinline__ void normalise(const T* row, const T* gamma_row, const T* beta_row,
                                          int64_t width, A eps, T* out) {
  const auto [mean, rstd] = statistics_of<VEC>(row, width, eps);
  for (int64_t i = threadIdx.x % kWarpSize * kQuad; i < width; i += kWarpSize * kQuad) {
    A x[kQuad], gamma[kQuad], beta[kQuad];
    load_quad<VEC>(row, i, width, x);
    load_quad<VEC>(gamma_row, i, width, gamma);
    load_quad<VEC>(beta_row, i, width, beta);
#pragma unroll
    for (int j = 0; j < kQuad; ++j) x[j] = (x[j] - mean) * rstd * gamma[j] + beta[j];
    store_quad<VEC>(out, i, width, x);
  }
}

// What makes the gradient of a row from that of the normalised row.
template <class A>
struct NormSlope {
  Statistics<A> of_row;
  A mean_grad, slope;

  template <int VEC, class T>
  __device__ __forceinline__ static NormSlope of(const T* row, const T* gamma_row,
                                                 const T* grad_row, int64_t width, A eps) {
    const Statistics<A> of_row = statistics_of<VEC>(row, width, eps);
    A sum = 0, dot = 0;
    for (int64_t i = threadIdx.x % kWarpSize * kQuad; i < width; i += kWarpSize * kQuad) {
      A x[kQuad], g[kQuad], gamma[kQuad];
      load_quad<VEC>(row, i, width, x);
      load_quad<VEC>(grad_row, i, width, g);
      load_quad<VEC>(gamma_row, i, width, gamma);
#pragma unroll
      for (int j = 0; j < kQuad; ++j) {
        sum += g[j] * gamma[j];  // 0 from the width on
        dot += g[j] * gamma[j] * (x[j] - of_row.mean);
      }
    }
    return {of_row, group_sum<kWarpSize>(sum) / static_cast<A>(width),
            group_sum<kWarpSize>(dot) / static_cast<A>(width) * of_row.rstd * of_row.rstd};
  }

  // A quad of the gradient.
  template <int VEC, class T>
  __device__ __forceinline__ void load_gradient(const T* row, const T* gamma_row, const T* grad_row,
                                                int64_t column, int64_t width,
                                                A (&g)[kQuad]) const {
    A x[kQuad], gamma[kQuad];
    load_quad<VEC>(row, column, width, x);
    load_quad<VEC>(grad_row, column, width, g);
    load_quad<VEC>(gamma_row, column, width, gamma);
#pragma unroll
    for (int j = 0; j < kQuad; ++j)
      g[j] = of_row.rstd * (g[j] * gamma[j] - mean_grad - slope * (x[j] - of_row.mean));
  }
};

// The backward for rows `begin` to `end - 1`, by a block of kSumThreads threads: writes the
// gradients of x in the block's columns, and adds up those of gamma and beta. Then the threads of
// one lane of `sums` call then(n) for each of their rows; in their columns, they may read the
// gradient of x.
template <int VEC, class T, class A, class Then>
__device__ __forceinline__ void norm_backward(const RowNormBackward<T>& in, int64_t begin,
                                              int64_t end, const ColumnSums& sums,
                                              A (&to_gamma)[kQuad], A (&to_beta)[kQuad],
                                              Then&& then) {
  constexpr int kRowsAtOnce = 32;
  __shared__ Statistics<A> statistics[kRowsAtOnce];
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  for (int64_t first = begin; first < end; first += kRowsAtOnce) {
    const int64_t last = min(first + kRowsAtOnce, end);
#pragma unroll 1
    for (int64_t n = first + warp; n < last; n += kSumThreads / kWarpSize) {
      const T *const row = in.x + n * in.width, *const grad = in.grad + n * in.width;
      const auto slope =
          NormSlope<A>::template of<VEC>(row, in.gamma, grad, in.width, static_cast<A>(in.eps));
      if (lane == 0) statistics[n - first] = slope.of_row;
#pragma unroll 1
      for (int q = lane; q < sums.quads; q += kWarpSize) {
        const int64_t i = sums.first_column + q * kQuad;
        A g[kQuad];
        slope.template load_gradient<VEC>(row, in.gamma, grad, i, in.width, g);
        if (in.more != nullptr) {
          A more[kQuad];
          load_quad<VEC>(in.more + n * in.width, i, in.width, more);
#pragma unroll
          for (int j = 0; j < kQuad; ++j) g[j] += more[j];
        }
        store_quad<VEC>(in.grad_x + n * in.width, i, in.width, g);
      }
    }
    __syncthreads();
    if (sums.works()) {
#pragma unroll 1
      for (int64_t n = first + sums.lane; n < last; n += sums.lanes) {
        const auto [mean, rstd] = statistics[n - first];
        A x[kQuad], g[kQuad];
        load_quad<VEC>(in.x + n * in.width, sums.column, in.width, x);
        load_quad<VEC>(in.grad + n * in.width, sums.column, in.width, g);
#pragma unroll
        for (int j = 0; j < kQuad; ++j) {
          to_gamma[j] += g[j] * (x[j] - mean) * rstd;
          to_beta[j] += g[j];
        }
        then(n);
      }
    }
    __syncthreads();  // before the next rows' statistics
  }
}

}  // namespace ssept::cuda
