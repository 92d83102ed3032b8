// CUDA kernels of `bias_dropout`.
#include <algorithm>

#include "cuda/column_sums.cuh"
#include "cuda/dropout.cuh"
#include "ops/bias_dropout/launch.h"

namespace ssept::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kQuadsPerThread = 2;

// A block is for `rows_per_block` whole rows: few enough of their quads for 32-bit divisions.
template <class T, int VEC>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(BiasDropout<T> in, int64_t rows_per_block, T* __restrict__ out) {
  using A = Accumulator<T>;
  const DropoutMask mask(in.dropout);
  const int64_t first_row = blockIdx.x * rows_per_block;
  const auto quads = static_cast<uint32_t>((in.width + kQuad - 1) / kQuad);
  const auto count = static_cast<uint32_t>(min(rows_per_block, in.num_rows - first_row)) * quads;
  for (uint32_t i = threadIdx.x; i < count; i += kThreads) {
    const uint32_t quad = i % quads;
    const int64_t n = first_row + i / quads, column = static_cast<int64_t>(quad) * kQuad;
    A x[kQuad], bias[kQuad];
    load_quad<VEC>(in.x + n * in.width, column, in.width, x);
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
    store_quad<VEC>(out + n * in.width, column, in.width, x);
  }
}

// grad_x of a part of the rows, block x's, and its column sums. Where there is a ReLU, what it or
// dropout set to zero shows in `out`.
template <class T, int VEC, class A = Accumulator<T>>
__global__ void __launch_bounds__(kSumThreads)
    backward_kernel(BiasDropoutBackward<T> in, int64_t rows_per_part, T* __restrict__ grad_x,
                    A* __restrict__ part_sums) {
  const ColumnSums sums(in.width);
  const DropoutMask mask(in.dropout);
  const A scale = static_cast<A>(in.dropout.scale);
  const int64_t begin = blockIdx.x * rows_per_part;
  const int64_t end = min(begin + rows_per_part, in.num_rows);
  A sum[kQuad] = {};
  if (sums.works()) {
    for (int64_t n = begin + sums.lane; n < end; n += sums.lanes) {
      A g[kQuad];
      load_quad<VEC>(in.grad + n * in.width, sums.column, in.width, g);
      if (in.relu) {
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
      if (sums.column + j < in.width) part_sums[blockIdx.x * in.width + sums.column + j] = sum[j];
  }
}

// The second stage: adds up the parts.
template <class A>
__global__ void __launch_bounds__(kSumThreads)
    sum_parts_kernel(const A* __restrict__ part_sums, int64_t num_parts, int64_t width,
                     A* __restrict__ grad_bias) {
  const ColumnSums sums(width);
  A sum[kQuad] = {};
  if (sums.works()) {
    for (int64_t part = sums.lane; part < num_parts; part += sums.lanes) {
#pragma unroll
      for (int j = 0; j < kQuad; ++j)
        if (sums.column + j < width) sum[j] += part_sums[part * width + sums.column + j];
    }
  }
  sums.reduce(sum);
  if (sums.lane == 0) {
#pragma unroll
    for (int j = 0; j < kQuad; ++j)
      if (sums.column + j < width) grad_bias[sums.column + j] = sum[j];
  }
}

}  // namespace

template <class T>
cudaError_t BiasDropoutKernels<T>::forward(const BiasDropout<T>& in, T* out, cudaStream_t stream) {
  if (in.num_rows == 0 || in.width == 0) return cudaSuccess;
  const int64_t rows = std::max<int64_t>(1, kThreads * kQuadsPerThread / num_quads(in.width));
  const dim3 grid(static_cast<unsigned>((in.num_rows + rows - 1) / rows));
  return with_pack_size<T>({in.width}, {in.x, in.bias, in.residual, out}, [&]<int VEC>() {
    return launch(forward_kernel<T, VEC>, grid, kThreads, 0, stream, in, rows, out);
  });
}

template <class T>
cudaError_t BiasDropoutKernels<T>::backward(const BiasDropoutBackward<T>& in, T* grad_x,
                                            A* part_sums, A* grad_bias, cudaStream_t stream) {
  if (in.width == 0) return cudaSuccess;
  const int64_t parts = bias_dropout_parts(in.num_rows);
  if (parts > 0) {
    const cudaError_t error =
        with_pack_size<T>({in.width}, {in.grad, in.out, grad_x}, [&]<int VEC>() {
          return launch(backward_kernel<T, VEC>,
                        dim3(static_cast<unsigned>(parts), sum_blocks(in.width)), kSumThreads, 0,
                        stream, in, bias_dropout_rows_per_part(in.num_rows), grad_x, part_sums);
        });
    if (error != cudaSuccess) return error;
  }
  return launch(sum_parts_kernel<A>, dim3(1, sum_blocks(in.width)), kSumThreads, 0, stream,
                part_sums, parts, in.width, grad_bias);
}

template struct BiasDropoutKernels<float>;
template struct BiasDropoutKernels<double>;
template struct BiasDropoutKernels<__half>;
template struct BiasDropoutKernels<__nv_bfloat16>;

}  // namespace ssept::cuda
