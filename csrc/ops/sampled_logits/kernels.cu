// CUDA kernels of `sampled_logits` and `sampled_loss`.
#include "cuda/column_sums.cuh"
#include "cuda/ids.cuh"
#include "cuda/sequences.cuh"
#include "cuda/shared_memory.h"
#include "ops/sampled_logits/launch.h"
#include "ops/sampled_logits/loss.cuh"

namespace ssept::cuda {
namespace {

constexpr int kLanesPerItem = 8;  // a quarter of a warp reads one item's row
constexpr int kItemsPerWarp = kWarpSize / kLanesPerItem;
constexpr int64_t kItemsPerBlock =
    64;  // scored by one warp of the forward, so that few tokens fill a GPU too

template <class T>
__device__ __forceinline__ Sequences sequences_of(const SampledLogits<T>& in) {
  return {in.cu_seqlens, in.size.num_sequences, in.size.num_tokens};
}

// One warp scores up to kItemsPerBlock items of one token or, with LOSS, all of them, and computes
// the gradient of the token's loss. The hidden state lies in shared memory; the user's term is
// computed once for all of them.
template <class T, int VEC, bool LOSS, class A = Accumulator<T>>
__global__ void __launch_bounds__(kThreadsPerBlock)
    forward_kernel(SampledLogits<T> in, SampledLoss<A> loss, T* out, A* logits, A* losses,
                   BadIdNote* note) {
  const SampledLogitsSizes& s = in.size;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int group = lane / kLanesPerItem, lane_in_group = lane % kLanesPerItem;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp;
  if (n >= s.num_tokens) return;
  const int64_t first = blockIdx.y * kItemsPerBlock;
  const int64_t last = LOSS ? s.num_items : min(first + kItemsPerBlock, s.num_items);
  out += n * s.num_items;
  const Sequences sequences = sequences_of(in);
  if (n >= sequences.num_real()) {
    for (int64_t k = first + lane; k < last; k += kWarpSize) {
      out[k] = narrow<T>(0);
      if constexpr (LOSS) loss.items[n * s.num_items + k] = 0;
    }
    if (LOSS && lane < 2) losses[2 * n + lane] = 0;
    return;
  }

  A* h = reinterpret_cast<A*>(smem_raw) + warp * s.width;
  for (int64_t i = lane; i < s.width; i += kWarpSize) h[i] = widen(in.hidden[n * s.width + i]);
  __syncwarp();

  A user_term = 0;
  if (in.users != nullptr) {
    const int64_t user = in.users[sequences.owner_of(n)];
    if (usable(user, s.user_rows, IdArgument::kUsers, note)) {
      const T* row = in.user_weight + user * s.user_width;
      for (int64_t i = lane; i < s.user_width; i += kWarpSize)
        user_term += h[s.item_width + i] * widen(row[i]);
    }
    user_term = group_sum<kWarpSize>(user_term) * static_cast<A>(s.user_scale);
  }

  for (int64_t k0 = first; k0 < last; k0 += kItemsPerWarp) {
    const int64_t k = k0 + group;
    int64_t item = 0;
    if (k < last) {
      if constexpr (LOSS)
        item = k == 0 ? loss.positives[n] : loss.negatives[n * (s.num_items - 1) + k - 1];
      else
        item = in.items[n * s.num_items + k];
    }
    const IdArgument argument = !LOSS    ? IdArgument::kItems
                                : k == 0 ? IdArgument::kPositives
                                         : IdArgument::kNegatives;
    const bool scored = usable(item, s.item_rows, argument, note);
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
    if (k < last && lane_in_group == 0) {
      A logit = scored ? sum + user_term : A(0);
      if constexpr (LOSS) {
        if (!scored) item = 0;
        loss.items[n * s.num_items + k] = item;
        if (loss.log_q != nullptr && (k > 0 || loss.corrects_positive))
          logit -= loss.log_q[item] + loss.log_num_drawn;
        logits[n * s.num_items + k] = logit;
      } else {
        out[k] = narrow<T>(logit);
      }
    }
  }
  if constexpr (LOSS) {
    __syncwarp();
    const bool has_target = loss.items[n * s.num_items] != 0;
    const A of_token = compute_loss(loss, logits + n * s.num_items, out, s.num_items);
    for (int64_t k = lane; k < s.num_items && !has_target; k += kWarpSize) out[k] = narrow<T>(0);
    if (lane < 2) losses[2 * n + lane] = !has_target ? A(0) : lane == 0 ? of_token : A(1);
  }
}

// A warp writes `scale` times a row, or zeros where there is none.
template <int VEC, class T, class A>
__device__ __forceinline__ void store_scaled(T* out, const T* row, int64_t width, A scale) {
  for (int64_t i = threadIdx.x % kWarpSize * VEC; i < width; i += kWarpSize * VEC) {
    Pack<T, VEC> pack{};
    if (row != nullptr) pack = *reinterpret_cast<const Pack<T, VEC>*>(row + i);
#pragma unroll
    for (int j = 0; j < VEC; ++j) pack.value[j] = narrow<T>(scale * widen(pack.value[j]));
    *reinterpret_cast<Pack<T, VEC>*>(out + i) = pack;
  }
}

// One warp for one token: grad_hidden, the sum of the logits' gradients (all that the users'
// gradient needs of them), and, unless grad_item is null, the items' gradient by atomics. A lane
// owns VEC columns and keeps the token's hidden state and the sum of them in registers, so all that
// an item costs is one load and one atomic of its row: where many tokens score a popular item, the
// atomics meet in the L2 cache, and no thread waits for them.
template <class T, int VEC, class A = Accumulator<T>>
__global__ void __launch_bounds__(kThreadsPerBlock)
    backward_tokens_kernel(SampledLogits<T> in, const T* __restrict__ grad_logits,
                           const A* grad_loss, const A* inverse_count, T* __restrict__ grad_hidden,
                           A* __restrict__ grad_item, A* __restrict__ grad_sum, BadIdNote* note) {
  constexpr int kAtOnce = 4;  // rows in flight
  const SampledLogitsSizes& s = in.size;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp;
  if (n >= s.num_tokens) return;
  T* out = grad_hidden + n * s.width;
  const Sequences sequences = sequences_of(in);
  if (n >= sequences.num_real()) {
    for (int64_t i = lane; i < s.width; i += kWarpSize) out[i] = narrow<T>(0);
    return;
  }

  A total = 0;
  // Once around for most widths. The items' gradients are summed up in the first round.
  for (int64_t first = 0; first < max(s.item_width, int64_t{1}); first += kWarpSize * VEC) {
    const int64_t column = first + lane * VEC;
    const bool owner = column < s.item_width;
    A h[VEC] = {}, sum[VEC] = {};
    if (owner) {
      const auto pack = *reinterpret_cast<const Pack<T, VEC>*>(in.hidden + n * s.width + column);
#pragma unroll
      for (int j = 0; j < VEC; ++j) h[j] = widen(pack.value[j]);
    }
    for (int64_t k0 = 0; k0 < s.num_items; k0 += kWarpSize) {
      const int64_t k = k0 + lane;
      int64_t my_item = 0;
      A my_grad = 0;
      if (k < s.num_items) {
        my_item = in.items[n * s.num_items + k];
        if (!usable(my_item, s.item_rows, IdArgument::kItems, note)) my_item = 0;
        if (my_item != 0) {  // the factors are read here, as they would cost a register before
          my_grad = widen(grad_logits[n * s.num_items + k]);
          if (grad_loss != nullptr) my_grad *= *grad_loss * *inverse_count;
        }
      }
      if (first == 0) total += my_grad;
      const int count = static_cast<int>(min(s.num_items - k0, static_cast<int64_t>(kWarpSize)));
      for (int j0 = 0; j0 < count; j0 += kAtOnce) {
        int64_t item[kAtOnce];
        A g[kAtOnce];
        Pack<T, VEC> row[kAtOnce];
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {  // lanes from `count` on have item 0
          item[j] = __shfl_sync(kAllLanes, my_item, j0 + j);
          g[j] = __shfl_sync(kAllLanes, my_grad, j0 + j);
          row[j] = {};
          if (owner && item[j] != 0)
            row[j] = *reinterpret_cast<const Pack<T, VEC>*>(in.item_weight +
                                                            item[j] * s.item_width + column);
        }
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
          A to_item[VEC];
#pragma unroll
          for (int c = 0; c < VEC; ++c) {
            sum[c] += g[j] * widen(row[j].value[c]);
            to_item[c] = g[j] * h[c];
          }
          if (grad_item != nullptr && owner && item[j] != 0)
            atomic_add<VEC>(grad_item + item[j] * s.item_width + column, to_item);
        }
      }
    }
    if (owner) {
      Pack<T, VEC> pack;
#pragma unroll
      for (int j = 0; j < VEC; ++j) pack.value[j] = narrow<T>(sum[j]);
      *reinterpret_cast<Pack<T, VEC>*>(out + column) = pack;
    }
  }
  total = group_sum<kWarpSize>(total);
  if (lane == 0) grad_sum[n] = total;
  if (in.users == nullptr) return;
  const int64_t user = in.users[sequences.owner_of(n)];
  const bool known = usable(user, s.user_rows, IdArgument::kUsers, note);
  const T* row = known ? in.user_weight + user * s.user_width : nullptr;
  store_scaled<VEC>(out + s.item_width, row, s.user_width, total * static_cast<A>(s.user_scale));
}

// The items' gradient in a fixed order: the warp at the first of an item's entries sums all of
// them.
template <class T, int VEC, class A = Accumulator<T>>
__global__ void __launch_bounds__(kThreadsPerBlock)
    backward_items_in_order_kernel(SampledLogits<T> in, const T* __restrict__ grad_logits,
                                   const A* grad_loss, const A* inverse_count,
                                   const int64_t* __restrict__ item_order,
                                   A* __restrict__ grad_item) {
  constexpr int kAtOnce = 4;  // rows in flight
  const SampledLogitsSizes& s = in.size;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int64_t count = s.num_tokens * s.num_items;
  const int64_t num_real = sequences_of(in).num_real();
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp;
  if (begin >= count) return;
  const int64_t item = in.items[item_order[begin]];
  if (item <= 0 || item >= s.item_rows) return;
  if (begin > 0 && in.items[item_order[begin - 1]] == item) return;
  const A factor = grad_loss != nullptr ? *grad_loss * *inverse_count : A(1);
  for (int64_t first = 0; first < s.item_width; first += kWarpSize * VEC) {
    const int64_t column = first + lane * VEC;
    const bool owner = column < s.item_width;
    A sum[VEC] = {};
    unsigned in_run = kAllLanes;
    for (int64_t e0 = begin; in_run == kAllLanes; e0 += kWarpSize) {
      const int64_t entry = e0 + lane < count ? item_order[e0 + lane] : -1;
      const bool mine = entry >= 0 && in.items[entry] == item;
      in_run = __ballot_sync(kAllLanes, mine);
      const int64_t my_token = mine ? entry / s.num_items : num_real;
      const A my_grad = my_token < num_real ? factor * widen(grad_logits[entry]) : A(0);
      for (int j0 = 0; j0 < __popc(in_run); j0 += kAtOnce) {
        A g[kAtOnce];
        Pack<T, VEC> row[kAtOnce];
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
          const int64_t n = __shfl_sync(kAllLanes, my_token, j0 + j);
          g[j] = __shfl_sync(kAllLanes, my_grad, j0 + j);
          row[j] = {};
          if (owner && n < num_real)
            row[j] = *reinterpret_cast<const Pack<T, VEC>*>(in.hidden + n * s.width + column);
        }
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j)
#pragma unroll
          for (int c = 0; c < VEC; ++c) sum[c] += g[j] * widen(row[j].value[c]);
      }
    }
    if (owner)
#pragma unroll
      for (int c = 0; c < VEC; ++c) grad_item[item * s.item_width + column + c] = sum[c];
  }
}

// Block x for the user of sequence x, unless an earlier sequence is the user's:
// sqrt(Du) · Σ grad_sum[n] · hidden[n, Di:] over all their sequences, in a fixed order.
template <class T, int VEC, class A = Accumulator<T>>
__global__ void __launch_bounds__(kSumThreads)
    backward_users_kernel(SampledLogits<T> in, const A* __restrict__ grad_sum,
                          A* __restrict__ grad_user) {
  const SampledLogitsSizes& s = in.size;
  const ColumnSums sums(s.user_width);
  const Sequences sequences = sequences_of(in);
  const int64_t b = blockIdx.x, user = in.users[b];
  if (user <= 0 || user >= s.user_rows) return;
  A sum[kQuad] = {};
  const auto add = [&](int64_t sequence) {
    if (!sums.works()) return;
    const int64_t end = sequences.end(sequence);
    for (int64_t n = sequences.begin(sequence) + sums.lane; n < end; n += sums.lanes) {
      A h[kQuad];
      load_quad<VEC>(in.hidden + n * s.width + s.item_width, sums.column, s.user_width, h);
#pragma unroll
      for (int j = 0; j < kQuad; ++j) sum[j] += grad_sum[n] * h[j];
    }
  };
  if (!for_each_sequence_of_user(in.users, s.num_sequences, b, add)) return;
  sums.reduce(sum);
  if (sums.lane != 0) return;
#pragma unroll
  for (int j = 0; j < kQuad; ++j) sum[j] *= static_cast<A>(s.user_scale);
  store_quad<VEC>(grad_user + user * s.user_width, sums.column, s.user_width, sum);
}

}  // namespace

template <class T>
cudaError_t SampledLogitsKernels<T>::forward(const SampledLogits<T>& in, const SampledLoss<A>* loss,
                                             T* out, A* logits, A* losses, BadIdNote* note,
                                             cudaStream_t stream) {
  const SampledLogitsSizes& s = in.size;
  if (s.num_tokens == 0 || s.num_items == 0) return cudaSuccess;
  const dim3 grid =
      blocks_of_warps(s.num_tokens, loss ? 1 : (s.num_items + kItemsPerBlock - 1) / kItemsPerBlock);
  const size_t smem = kWarpsPerBlock * s.width * sizeof(A);
  return with_pack_size<T>({s.item_width}, {in.item_weight}, [&]<int VEC>() {
    const auto kernel = loss ? forward_kernel<T, VEC, true> : forward_kernel<T, VEC, false>;
    const cudaError_t error = allow_shared_memory(reinterpret_cast<const void*>(kernel),
                                                  loss ? "sampled_loss" : "sampled_logits", smem);
    if (error != cudaSuccess) return error;
    return launch(kernel, grid, kThreadsPerBlock, smem, stream, in, loss ? *loss : SampledLoss<A>{},
                  out, logits, losses, note);
  });
}

template <class T>
cudaError_t SampledLogitsKernels<T>::mean(const A* losses, int64_t num_tokens, A* mean,
                                          A* inverse_count, cudaStream_t stream) {
  return launch(mean_kernel<A>, dim3(1), kMeanThreads, 0, stream, losses, num_tokens, mean,
                inverse_count);
}

template <class T>
cudaError_t SampledLogitsKernels<T>::backward(const SampledLogits<T>& in, const T* grad_logits,
                                              const A* grad_loss, const A* inverse_count,
                                              const int64_t* item_order, T* grad_hidden,
                                              A* grad_item, A* grad_user, A* grad_sum,
                                              BadIdNote* note, cudaStream_t stream) {
  const SampledLogitsSizes& s = in.size;
  return with_pack_size<T>(
      {s.item_width, s.user_width}, {in.hidden, in.item_weight, in.user_weight, grad_hidden},
      [&]<int VEC>() {
        cudaError_t error = cudaSuccess;
        if (s.num_tokens > 0)
          error = launch(backward_tokens_kernel<T, VEC>, blocks_of_warps(s.num_tokens),
                         kThreadsPerBlock, 0, stream, in, grad_logits, grad_loss, inverse_count,
                         grad_hidden, item_order == nullptr ? grad_item : nullptr, grad_sum, note);
        if (error == cudaSuccess && item_order != nullptr && s.num_tokens * s.num_items > 0)
          error = launch(backward_items_in_order_kernel<T, VEC>,
                         blocks_of_warps(s.num_tokens * s.num_items), kThreadsPerBlock, 0, stream,
                         in, grad_logits, grad_loss, inverse_count, item_order, grad_item);
        if (error == cudaSuccess && grad_user != nullptr && s.num_sequences > 0 && s.user_width > 0)
          error = launch(backward_users_kernel<T, VEC>,
                         dim3(static_cast<unsigned>(s.num_sequences), sum_blocks(s.user_width)),
                         kSumThreads, 0, stream, in, grad_sum, grad_user);
        return error;
      });
}

template struct SampledLogitsKernels<float>;
template struct SampledLogitsKernels<double>;
template struct SampledLogitsKernels<__half>;
template struct SampledLogitsKernels<__nv_bfloat16>;

}  // namespace ssept::cuda
