// CUDA kernels of `feed_forward`.
#include "cuda/dropout.cuh"
#include "cuda/row_norm.cuh"
#include "ops/feed_forward/launch.h"

namespace ssept::cuda {
namespace {

// A quad of what follows a product, in its place.
template <int VEC, class T>
__device__ __forceinline__ void finish_quad(const BiasDropout<T>& in, const DropoutMask& mask,
                                            T* product, int64_t n, int64_t column) {
  Accumulator<T> x[kQuad], bias[kQuad];
  load_quad<VEC>(product + n * in.width, column, in.width, x);
  load_quad<VEC>(in.bias, column, in.width, bias);
#pragma unroll
  for (int j = 0; j < kQuad; ++j) {
    x[j] += bias[j];
    if (in.relu && x[j] < 0) x[j] = 0;  // keeps NaN
  }
  mask.apply(x, n, column);
  if (in.residual != nullptr) {
    Accumulator<T> residual[kQuad];
    load_quad<VEC>(in.residual + n * in.width, column, in.width, residual);
#pragma unroll
    for (int j = 0; j < kQuad; ++j) x[j] += residual[j];
  }
  store_quad<VEC>(product + n * in.width, column, in.width, x);
}

template <class T, int VEC>
__global__ void __launch_bounds__(kQuadThreads)
    finish_kernel(BiasDropout<T> in, T* product, int64_t rows_per_block) {
  const DropoutMask mask(in.dropout);
  for_each_quad(in.num_rows, in.width, rows_per_block,
                [&](int64_t n, int64_t column) { finish_quad<VEC>(in, mask, product, n, column); });
}

// One warp for one row: each thread reads again what it has written.
template <class T, int VEC>
__global__ void __launch_bounds__(kThreadsPerBlock)
    finish_and_norm_kernel(BiasDropout<T> in, ResultNorm<T> norm, T* product) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp;
  if (n >= in.num_rows) return;
  const DropoutMask mask(in.dropout);
  for (int64_t i = lane * kQuad; i < in.width; i += kWarpSize * kQuad)
    finish_quad<VEC>(in, mask, product, n, i);
  normalise<VEC>(product + n * in.width, norm.gamma, norm.beta, in.width,
                 static_cast<Accumulator<T>>(norm.eps), norm.out + n * in.width);
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
  sums.write(sum, in.width, part_sums + blockIdx.x * part_row);
}

// As start_kernel, of the gradient before a norm.
template <class T, int VEC, class A = Accumulator<T>>
__global__ void __launch_bounds__(kSumThreads)
    start_after_norm_kernel(BiasDropoutBackward<T> in, RowNormBackward<T> norm,
                            int64_t rows_of_part, T* grad_x, A* __restrict__ part_sums,
                            int64_t part_row) {
  const ColumnSums sums(in.width);
  const DropoutMask mask(in.dropout);
  const int64_t begin = blockIdx.x * rows_of_part;
  const int64_t end = min(begin + rows_of_part, in.num_rows);
  A sum[kQuad] = {}, to_gamma[kQuad] = {}, to_beta[kQuad] = {};
  norm_backward<VEC>(norm, begin, end, sums, to_gamma, to_beta, [&](int64_t n) {
    A g[kQuad];
    load_quad<VEC>(norm.grad_x + n * in.width, sums.column, in.width, g);
    mask.apply(g, n, sums.column);
#pragma unroll
    for (int j = 0; j < kQuad; ++j) sum[j] += g[j];
    store_quad<VEC>(grad_x + n * in.width, sums.column, in.width, g);
  });
  A* const part = part_sums + blockIdx.x * part_row;
  sums.write(sum, in.width, part);
  sums.write(to_gamma, in.width, part + in.width);
  sums.write(to_beta, in.width, part + 2 * in.width);
}

}  // namespace

template <class T>
cudaError_t FeedForwardKernels<T>::finish(const BiasDropout<T>& in, const ResultNorm<T>& norm, T* x,
                                          cudaStream_t stream) {
  if (norm.gamma != nullptr && in.num_rows > 0 && in.width > 0)
    return with_pack_size<T>(
        {in.width}, {x, in.bias, in.residual, norm.gamma, norm.beta, norm.out}, [&]<int VEC>() {
          return launch(finish_and_norm_kernel<T, VEC>, blocks_of_warps(in.num_rows),
                        kThreadsPerBlock, 0, stream, in, norm, x);
        });
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
    const dim3 grid(static_cast<unsigned>(num_parts(in.num_rows)), sum_blocks(in.width));
    return launch(start_kernel<T, VEC>, grid, kSumThreads, 0, stream, in,
                  rows_per_part(in.num_rows), grad, grad_x, copy, part_sums, part_row);
  });
}

template <class T>
cudaError_t FeedForwardKernels<T>::start_after_norm(const BiasDropoutBackward<T>& in,
                                                    const RowNormBackward<T>& norm, T* grad_x,
                                                    A* part_sums, int64_t part_row,
                                                    cudaStream_t stream) {
  if (in.width == 0 || in.num_rows == 0) return cudaSuccess;
  return with_pack_size<T>(
      {in.width}, {norm.x, norm.gamma, norm.grad, norm.more, norm.grad_x, grad_x}, [&]<int VEC>() {
        const dim3 grid(static_cast<unsigned>(num_parts(in.num_rows)), sum_blocks(in.width));
        return launch(start_after_norm_kernel<T, VEC>, grid, kSumThreads, 0, stream, in, norm,
                      rows_per_part(in.num_rows), grad_x, part_sums, part_row);
      });
}

template <class T>
cudaError_t FeedForwardKernels<T>::finish_sums(const PartsOf<A, 6>& all, cudaStream_t stream) {
  return launch_sum_parts(all, stream);
}

template struct FeedForwardKernels<float>;
template struct FeedForwardKernels<double>;
template struct FeedForwardKernels<__half>;
template struct FeedForwardKernels<__nv_bfloat16>;

}  // namespace ssept::cuda
