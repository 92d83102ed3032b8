// CUDA kernels of `sampled_logits`.
#include "cuda/ids.cuh"
#include "cuda/reduce.cuh"
#include "cuda/sampled_logits.h"

namespace ssept::cuda {
namespace {

constexpr int kWarpsPerBlock = 4;
constexpr int kLanesPerItem = 8;  // a quarter of a warp reads one item's row
constexpr int kItemsPerWarp = kWarpSize / kLanesPerItem;
constexpr int64_t kItemsPerBlock =
    64;  // scored by one warp of the forward, so that few tokens fill a GPU too

// One warp scores up to kItemsPerBlock items of one token. The hidden state lies in shared memory;
// the user's term is computed once for all of them.
template <class T, int VEC>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarpSize)
    forward_kernel(SampledLogits<T> in, T* __restrict__ logits, BadIdNote* note) {
  using A = Accumulator<T>;
  const SampledLogitsSizes& s = in.size;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int group = lane / kLanesPerItem, lane_in_group = lane % kLanesPerItem;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp;
  if (n >= s.num_tokens) return;
  const int64_t first = blockIdx.y * kItemsPerBlock;
  const int64_t last = min(first + kItemsPerBlock, s.num_items);
  T* out = logits + n * s.num_items;
  if (n >= in.cu_seqlens[s.num_sequences]) {
    for (int64_t k = first + lane; k < last; k += kWarpSize) out[k] = narrow<T>(0);
    return;
  }

  A* h = reinterpret_cast<A*>(smem_raw) + warp * s.width;
  for (int64_t i = lane; i < s.width; i += kWarpSize) h[i] = widen(in.hidden[n * s.width + i]);
  __syncwarp();

  A user_term = 0;
  if (in.users != nullptr) {
    const int64_t user = in.users[sequence_of(n, in.cu_seqlens, s.num_sequences)];
    if (usable(user, s.user_rows, IdArgument::kUsers, note)) {
      const T* row = in.user_weight + user * s.user_width;
      for (int64_t i = lane; i < s.user_width; i += kWarpSize)
        user_term += h[s.item_width + i] * widen(row[i]);
    }
    user_term = group_sum<kWarpSize>(user_term) * static_cast<A>(s.user_scale);
  }

  for (int64_t k0 = first; k0 < last; k0 += kItemsPerWarp) {
    const int64_t k = k0 + group;
    const int64_t item = k < last ? in.items[n * s.num_items + k] : 0;
    const bool scored = usable(item, s.item_rows, IdArgument::kItems, note);
    A sum = 0;
    if (scored) {
      const T* row = in.item_weight + item * s.item_width;
      for (int64_t i = lane_in_group * VEC; i < s.item_width; i += kLanesPerItem * VEC) {
        const auto pack = *reinterpret_cast<const Pack<T, VEC>*>(row + i);
#pragma unroll
        for (int j = 0; j < VEC; ++j) sum += h[i + j] * widen(pack.value[j]);
      }
    }
    sum = group_sum<kLanesPerItem>(sum);
    if (k < last && lane_in_group == 0) out[k] = narrow<T>(scored ? sum + user_term : A(0));
  }
}

// One warp for one token: grad_hidden, the sum of the logits' gradients (all that the users'
// gradient needs of them), and, unless grad_item is null, the items' gradient by atomics.
template <class T, class A = Accumulator<T>>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarpSize)
    backward_tokens_kernel(SampledLogits<T> in, const T* __restrict__ grad_logits,
                           T* __restrict__ grad_hidden, A* __restrict__ grad_item,
                           A* __restrict__ grad_sum, BadIdNote* note) {
  const SampledLogitsSizes& s = in.size;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp;
  if (n >= s.num_tokens) return;
  T* out = grad_hidden + n * s.width;
  if (n >= in.cu_seqlens[s.num_sequences]) {
    for (int64_t i = lane; i < s.width; i += kWarpSize) out[i] = narrow<T>(0);
    return;
  }

  // Lane l owns elements l, l + 32, ... of both rows throughout, so no barrier is needed.
  A* h = reinterpret_cast<A*>(smem_raw) + 2 * warp * s.item_width;
  A* sum = h + s.item_width;
  for (int64_t i = lane; i < s.item_width; i += kWarpSize) {
    h[i] = widen(in.hidden[n * s.width + i]);
    sum[i] = 0;
  }
  A total = 0;
  for (int64_t k0 = 0; k0 < s.num_items; k0 += kWarpSize) {
    const int64_t k = k0 + lane;
    int64_t my_item = 0;
    A my_grad = 0;
    if (k < s.num_items) {
      my_item = in.items[n * s.num_items + k];
      if (!usable(my_item, s.item_rows, IdArgument::kItems, note)) my_item = 0;
      if (my_item != 0) my_grad = widen(grad_logits[n * s.num_items + k]);
    }
    total += my_grad;
    const int count = static_cast<int>(min(s.num_items - k0, static_cast<int64_t>(kWarpSize)));
    for (int j = 0; j < count; ++j) {
      const int64_t item = __shfl_sync(kAllLanes, my_item, j);
      const A g = __shfl_sync(kAllLanes, my_grad, j);
      if (item == 0) continue;
      const T* row = in.item_weight + item * s.item_width;
      for (int64_t i = lane; i < s.item_width; i += kWarpSize) {
        sum[i] += g * widen(row[i]);
        if (grad_item != nullptr) atomicAdd(grad_item + item * s.item_width + i, g * h[i]);
      }
    }
  }
  total = group_sum<kWarpSize>(total);
  for (int64_t i = lane; i < s.item_width; i += kWarpSize) out[i] = narrow<T>(sum[i]);
  if (lane == 0) grad_sum[n] = total;
  if (in.users == nullptr) return;
  const int64_t user = in.users[sequence_of(n, in.cu_seqlens, s.num_sequences)];
  const bool known = usable(user, s.user_rows, IdArgument::kUsers, note);
  const T* row = in.user_weight + user * s.user_width;
  for (int64_t i = lane; i < s.user_width; i += kWarpSize)
    out[s.item_width + i] =
        narrow<T>(known ? total * static_cast<A>(s.user_scale) * widen(row[i]) : A(0));
}

// The items' gradient in a fixed order: the warp at the first of an item's entries sums all of
// them.
template <class T, class A = Accumulator<T>>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarpSize)
    backward_items_in_order_kernel(SampledLogits<T> in, const T* __restrict__ grad_logits,
                                   const int64_t* __restrict__ item_order,
                                   A* __restrict__ grad_item) {
  const SampledLogitsSizes& s = in.size;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int64_t count = s.num_tokens * s.num_items;
  const int64_t num_real = in.cu_seqlens[s.num_sequences];
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp;
  if (begin >= count) return;
  const int64_t item = in.items[item_order[begin]];
  if (item <= 0 || item >= s.item_rows) return;
  if (begin > 0 && in.items[item_order[begin - 1]] == item) return;
  for (int64_t i = lane; i < s.item_width; i += kWarpSize) {
    A sum = 0;
    for (int64_t e = begin; e < count; ++e) {
      const int64_t entry = item_order[e];
      if (in.items[entry] != item) break;
      const int64_t n = entry / s.num_items;
      if (n < num_real) sum += widen(grad_logits[entry]) * widen(in.hidden[n * s.width + i]);
    }
    grad_item[item * s.item_width + i] = sum;
  }
}

// One block for one sequence: grad_user[b] = sqrt(Du) · Σ grad_sum[n] · hidden[n, Di:], in a fixed
// order. Each warp sums every kWarpsPerBlock-th token.
template <class T, class A = Accumulator<T>>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarpSize)
    backward_users_kernel(SampledLogits<T> in, const A* __restrict__ grad_sum,
                          A* __restrict__ grad_user) {
  __shared__ A partial[kWarpsPerBlock][kWarpSize];
  const SampledLogitsSizes& s = in.size;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int64_t b = blockIdx.x, user = in.users[b];
  const bool known = user > 0 && user < s.user_rows;
  for (int64_t i0 = 0; i0 < s.user_width; i0 += kWarpSize) {
    const int64_t i = i0 + lane;
    A sum = 0;
    if (known && i < s.user_width)
      for (int64_t n = in.cu_seqlens[b] + warp; n < in.cu_seqlens[b + 1]; n += kWarpsPerBlock)
        sum += grad_sum[n] * widen(in.hidden[n * s.width + s.item_width + i]);
    partial[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && i < s.user_width) {
      for (int w = 1; w < kWarpsPerBlock; ++w) sum += partial[w][lane];
      grad_user[b * s.user_width + i] = sum * static_cast<A>(s.user_scale);
    }
    __syncthreads();
  }
}

dim3 blocks_of_warps(int64_t warps, int64_t y = 1) {
  return dim3(static_cast<unsigned>((warps + kWarpsPerBlock - 1) / kWarpsPerBlock),
              static_cast<unsigned>(y));
}

constexpr int kThreads = kWarpsPerBlock * kWarpSize;

}  // namespace

template <class T>
cudaError_t launch_sampled_logits(const SampledLogits<T>& in, T* logits, BadIdNote* note,
                                  cudaStream_t stream) {
  const SampledLogitsSizes& s = in.size;
  if (s.num_tokens == 0 || s.num_items == 0) return cudaSuccess;
  const dim3 grid =
      blocks_of_warps(s.num_tokens, (s.num_items + kItemsPerBlock - 1) / kItemsPerBlock);
  const size_t smem = kWarpsPerBlock * s.width * sizeof(Accumulator<T>);
  constexpr int kWide = 16 / sizeof(T), kMedium = 8 / sizeof(T);
  if (rows_are_aligned<T, kWide>(in.item_weight, s.item_width))
    return launch(forward_kernel<T, kWide>, grid, kThreads, smem, stream, in, logits, note);
  if (rows_are_aligned<T, kMedium>(in.item_weight, s.item_width))
    return launch(forward_kernel<T, kMedium>, grid, kThreads, smem, stream, in, logits, note);
  return launch(forward_kernel<T, 1>, grid, kThreads, smem, stream, in, logits, note);
}

template <class T, class A>
cudaError_t launch_sampled_logits_backward(const SampledLogits<T>& in, const T* grad_logits,
                                           const int64_t* item_order, T* grad_hidden, A* grad_item,
                                           A* grad_user, A* grad_sum, BadIdNote* note,
                                           cudaStream_t stream) {
  const SampledLogitsSizes& s = in.size;
  if (s.num_tokens > 0) {
    const cudaError_t error =
        launch(backward_tokens_kernel<T>, blocks_of_warps(s.num_tokens), kThreads,
               2 * kWarpsPerBlock * s.item_width * sizeof(A), stream, in, grad_logits, grad_hidden,
               item_order == nullptr ? grad_item : nullptr, grad_sum, note);
    if (error != cudaSuccess) return error;
  }
  if (item_order != nullptr && s.num_tokens * s.num_items > 0) {
    const cudaError_t error =
        launch(backward_items_in_order_kernel<T>, blocks_of_warps(s.num_tokens * s.num_items),
               kThreads, 0, stream, in, grad_logits, item_order, grad_item);
    if (error != cudaSuccess) return error;
  }
  if (grad_user == nullptr || s.num_sequences == 0) return cudaSuccess;
  return launch(backward_users_kernel<T>, dim3(static_cast<unsigned>(s.num_sequences)), kThreads, 0,
                stream, in, grad_sum, grad_user);
}

template cudaError_t launch_sampled_logits(const SampledLogits<float>&, float*, BadIdNote*,
                                           cudaStream_t);
template cudaError_t launch_sampled_logits(const SampledLogits<double>&, double*, BadIdNote*,
                                           cudaStream_t);
template cudaError_t launch_sampled_logits(const SampledLogits<__half>&, __half*, BadIdNote*,
                                           cudaStream_t);
template cudaError_t launch_sampled_logits(const SampledLogits<__nv_bfloat16>&, __nv_bfloat16*,
                                           BadIdNote*, cudaStream_t);
template cudaError_t launch_sampled_logits_backward(const SampledLogits<float>&, const float*,
                                                    const int64_t*, float*, float*, float*, float*,
                                                    BadIdNote*, cudaStream_t);
template cudaError_t launch_sampled_logits_backward(const SampledLogits<double>&, const double*,
                                                    const int64_t*, double*, double*, double*,
                                                    double*, BadIdNote*, cudaStream_t);
template cudaError_t launch_sampled_logits_backward(const SampledLogits<__half>&, const __half*,
                                                    const int64_t*, __half*, float*, float*, float*,
                                                    BadIdNote*, cudaStream_t);
template cudaError_t launch_sampled_logits_backward(const SampledLogits<__nv_bfloat16>&,
                                                    const __nv_bfloat16*, const int64_t*,
                                                    __nv_bfloat16*, float*, float*, float*,
                                                    BadIdNote*, cudaStream_t);

}  // namespace ssept::cuda
