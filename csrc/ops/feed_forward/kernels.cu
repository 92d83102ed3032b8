// CUDA kernels of `feed_forward`.
#include <algorithm>

#include "cuda/column_sums.cuh"
#include "cuda/dropout.cuh"
#include "ops/feed_forward/launch.h"

namespace ssept::cuda {
namespace {

template <class T, int VEC>
__global__ void __launch_bounds__(kQuadThreads)
    finish_kernel(BiasDropout<T> in, T* product, int64_t rows_per_block) {
  using A = Accumulator<T>;
  const DropoutMask mask(in.dropout);
  for_each_quad(in.num_rows, in.width, rows_per_block, [&](int64_t n, int64_t column) {
    A x[kQuad], bias[kQuad];
    load_quad<VEC>(product + n * in.width, column, in.width, x);
    load_quad<VEC>(in.bias, column, in.width, bias);
#pragma unroll
    for (int j = 0; j < kQuad; ++j) {
      x[j] += bias[j];
      if (in.relu && x[j] < 0) x[j] = 0;  // keeps NaN
    }
    mask.apply(x, n, column);
    if (in.residual != nullptr) {
      A residual[kQuad];
      load_quad<VEC>(in.residual + n * in.width, column, in.width, residual);
#pragma unroll
      for (int j = 0; j < kQuad; ++j) x[j] += residual[j];
    }
    store_quad<VEC>(product + n * in.width, column, in.width, x);
  });
}

// grad_x of a part of the rows, block x's, and its column sums. Where there is a ReLU, what it or
// dropout set to zero shows in `out`. grad_x may be grad.
template <class T, int VEC, class A = Accumulator<T>>
__global__ void __launch_bounds__(kSumThreads)
    start_kernel(BiasDropoutBackward<T> in, int64_t rows_per_part, const T* grad, T* grad_x,
                 T* copy, A* __restrict__ part_sums, int64_t part_row) {
  const ColumnSums sums(in.width);
  const DropoutMask mask(in.dropout);
  const A scale = static_cast<A>(in.dropout.scale);
  const int64_t begin = blockIdx.x * rows_per_part;
  const int64_t end = min(begin + rows_per_part, in.num_rows);
  A sum[kQuad] = {};
  if (sums.works()) {
    for (int64_t n = begin + sums.lane; n < end; n += sums.lanes) {
      A g[kQuad];
      load_quad<VEC>(grad + n * in.width, sums.column, in.width, g);
      if (copy != nullptr) store_quad<VEC>(copy + n * in.width, sums.column, in.width, g);
      if (in.out != nullptr) {
        A out[kQuad];
        load_quad<VEC>(in.out + n * in.width, sums.column, in.width, out);
#pragma unroll
        for (int j = 0; j < kQuad; ++j) g[j] = out[j] > 0 ? scale * g[j] : A(0);
      } else {
        mask.apply(g, n, sums.column);
      }
#pragma unroll
      for (int j = 0; j < kQuad; ++j) sum[j] += g[j];
      store_quad<VEC>(grad_x + n * in.width, sums.column, in.width, g);
    }
  }
  sums.reduce(sum);
  if (sums.lane == 0) {
#pragma unroll
    for (int j = 0; j < kQuad; ++j)
      if (sums.column + j < in.width) part_sums[blockIdx.x * part_row + sums.column + j] = sum[j];
  }
}

// The second stage: adds up the parts. blockIdx.z says of which of the two, that lie side by side
// in part_sums.
template <class A>
__global__ void __launch_bounds__(kSumThreads)
    sum_parts_kernel(const A* __restrict__ part_sums, int64_t num_parts, A* __restrict__ first,
                     int64_t first_width, A* __restrict__ second, int64_t second_width) {
  const bool is_first = blockIdx.z == 0;
  const int64_t width = is_first ? first_width : second_width;
  const int64_t row = first_width + second_width, begin = is_first ? 0 : first_width;
  A* const out = is_first ? first : second;
  if (static_cast<int64_t>(blockIdx.y) * kQuadsPerSumBlock * kQuad >= width) return;
  const ColumnSums sums(width);
  A sum[kQuad] = {};
  if (sums.works()) {
    for (int64_t part = sums.lane; part < num_parts; part += sums.lanes) {
#pragma unroll
      for (int j = 0; j < kQuad; ++j)
        if (sums.column + j < width) sum[j] += part_sums[part * row + begin + sums.column + j];
    }
  }
  sums.reduce(sum);
  if (sums.lane == 0) {
#pragma unroll
    for (int j = 0; j < kQuad; ++j)
      if (sums.column + j < width) out[sums.column + j] = sum[j];
  }
}

}  // namespace

template <class T>
cudaError_t FeedForwardKernels<T>::finish(const BiasDropout<T>& in, T* x, cudaStream_t stream) {
  return with_pack_size<T>({in.width}, {x, in.bias, in.residual}, [&]<int VEC>() {
    return launch_on_quads(finish_kernel<T, VEC>, in.num_rows, in.width, stream, in, x);
  });
}

template <class T>
cudaError_t FeedForwardKernels<T>::start(const BiasDropoutBackward<T>& in, const T* grad, T* grad_x,
                                         T* copy, A* part_sums, int64_t part_row,
                                         cudaStream_t stream) {
  if (in.width == 0 || in.num_rows == 0) return cudaSuccess;
  return with_pack_size<T>({in.width}, {grad, in.out, grad_x, copy}, [&]<int VEC>() {
    const dim3 grid(static_cast<unsigned>(feed_forward_parts(in.num_rows)), sum_blocks(in.width));
    return launch(start_kernel<T, VEC>, grid, kSumThreads, 0, stream, in,
                  feed_forward_rows_per_part(in.num_rows), grad, grad_x, copy, part_sums, part_row);
  });
}

template <class T>
cudaError_t FeedForwardKernels<T>::sum_parts(const A* part_sums, int64_t parts, A* first,
                                             int64_t first_width, A* second, int64_t second_width,
                                             cudaStream_t stream) {
  if (first_width + second_width == 0) return cudaSuccess;
  const dim3 grid(1, sum_blocks(std::max(first_width, second_width)), 2);
  return launch(sum_parts_kernel<A>, grid, kSumThreads, 0, stream, part_sums, parts, first,
                first_width, second, second_width);
}

template struct FeedForwardKernels<float>;
template struct FeedForwardKernels<double>;
template struct FeedForwardKernels<__half>;
template struct FeedForwardKernels<__nv_bfloat16>;

}  // namespace ssept::cuda
