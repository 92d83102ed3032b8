// CUDA kernels of `lazy_adam` and `rowwise_adagrad`: one warp for one id.
#include "cuda/ids.cuh"
#include "cuda/quads.cuh"
#include "ops/row_update/launch.h"

namespace ssept::cuda {
namespace {

__device__ __forceinline__ double value_of(const NumberIn& x) {
  return x.is_double ? *static_cast<const double*>(x.at) : *static_cast<const float*>(x.at);
}

__device__ __forceinline__ int64_t id_of_warp() {
  return static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarpSize;
}

// The row of id j, or 0 where nothing is to be updated.
template <class T>
__device__ __forceinline__ int64_t row_of(const RowUpdate<T>& in, int64_t j, BadIdNote* note) {
  if (j >= in.num_ids) return 0;
  const int64_t row = in.ids[j];
  if (!usable(row, in.rows, IdArgument::kIds, note)) return 0;
  const int64_t before = j == 0 ? 0 : in.ids[j - 1];
  if (before < row || before >= in.rows) return row;
  note_bad_id(row, before, IdArgument::kOrder, note);
  return 0;
}

// 1 - beta^count, without cancellation.
template <class T>
__device__ __forceinline__ T correction(double count, double log_beta) {
  return -expm1(static_cast<T>(count * log_beta));
}

template <class T, int VEC>
__global__ void __launch_bounds__(kThreadsPerBlock)
    lazy_adam_kernel(LazyAdam<T> in, BadIdNote* note) {
  const int64_t j = id_of_warp(), row = row_of(in, j, note);
  if (row == 0) return;
  const T beta1 = in.beta1, beta2 = in.beta2, rest1 = 1 - in.beta1, rest2 = 1 - in.beta2;
  const T eps = in.eps, decay = in.weight_decay;
  const double count = value_of(in.step);
  const T size = static_cast<T>(value_of(in.learning_rate)) / correction<T>(count, in.log_beta1);
  const T root = 1 / sqrt(correction<T>(count, in.log_beta2));
  T* table = in.table + row * in.width;
  T* exp_avg = in.exp_avg + row * in.width;
  T* exp_avg_sq = in.exp_avg_sq + row * in.width;
  for (int64_t i = threadIdx.x % kWarpSize * kQuad; i < in.width; i += kWarpSize * kQuad) {
    T g[kQuad], p[kQuad], m[kQuad], v[kQuad];
    load_quad<VEC>(in.grad + j * in.width, i, in.width, g);
    load_quad<VEC>(table, i, in.width, p);
    load_quad<VEC>(exp_avg, i, in.width, m);
    load_quad<VEC>(exp_avg_sq, i, in.width, v);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      g[k] += decay * p[k];
      m[k] = beta1 * m[k] + rest1 * g[k];
      v[k] = beta2 * v[k] + rest2 * g[k] * g[k];
      p[k] -= size * m[k] / (sqrt(v[k]) * root + eps);
    }
    store_quad<VEC>(table, i, in.width, p);
    store_quad<VEC>(exp_avg, i, in.width, m);
    store_quad<VEC>(exp_avg_sq, i, in.width, v);
  }
}

template <class T, int VEC>
__global__ void __launch_bounds__(kThreadsPerBlock)
    rowwise_adagrad_kernel(RowwiseAdagrad<T> in, BadIdNote* note) {
  const int64_t j = id_of_warp(), row = row_of(in, j, note);
  if (row == 0) return;
  const T rate = value_of(in.learning_rate), eps = in.eps, decay = in.weight_decay;
  const int lane = threadIdx.x % kWarpSize;
  T* table = in.table + row * in.width;
  const auto load = [&](int64_t i, T(&g)[kQuad], T(&p)[kQuad]) {
    load_quad<VEC>(in.grad + j * in.width, i, in.width, g);
    load_quad<VEC>(table, i, in.width, p);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) g[k] += decay * p[k];  // 0 from the width on
  };
  T g[kQuad], p[kQuad], squares = 0;
  for (int64_t i = lane * kQuad; i < in.width; i += kWarpSize * kQuad) {
    load(i, g, p);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) squares += g[k] * g[k];
  }
  squares = group_sum<kWarpSize>(squares);
  T sum = 0;
  if (lane == 0) {
    sum = in.sum_of_squares[row] + squares / static_cast<T>(in.width);
    in.sum_of_squares[row] = sum;
  }
  sum = __shfl_sync(kAllLanes, sum, 0);
  const T size = rate / (sqrt(sum) + eps);
  for (int64_t i = lane * kQuad; i < in.width; i += kWarpSize * kQuad) {
    load(i, g, p);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) p[k] -= size * g[k];
    store_quad<VEC>(table, i, in.width, p);
  }
}

template <class In>
cudaError_t launch_for_ids(void (*kernel)(In, BadIdNote*), const In& in, BadIdNote* note,
                           cudaStream_t stream) {
  return launch(kernel, blocks_of_warps(in.num_ids), kThreadsPerBlock, 0, stream, in, note);
}

}  // namespace

template <class T>
cudaError_t launch_update(const LazyAdam<T>& in, BadIdNote* note, cudaStream_t stream) {
  return with_pack_size<T>(
      {in.width}, {in.table, in.exp_avg, in.exp_avg_sq, in.grad},
      [&]<int VEC>() { return launch_for_ids(lazy_adam_kernel<T, VEC>, in, note, stream); });
}

template <class T>
cudaError_t launch_update(const RowwiseAdagrad<T>& in, BadIdNote* note, cudaStream_t stream) {
  return with_pack_size<T>({in.width}, {in.table, in.grad}, [&]<int VEC>() {
    return launch_for_ids(rowwise_adagrad_kernel<T, VEC>, in, note, stream);
  });
}

template cudaError_t launch_update(const LazyAdam<float>&, BadIdNote*, cudaStream_t);
template cudaError_t launch_update(const LazyAdam<double>&, BadIdNote*, cudaStream_t);
template cudaError_t launch_update(const RowwiseAdagrad<float>&, BadIdNote*, cudaStream_t);
template cudaError_t launch_update(const RowwiseAdagrad<double>&, BadIdNote*, cudaStream_t);

}  // namespace ssept::cuda
