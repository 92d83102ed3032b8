// CUDA kernels of `user_item_embedding`.
#include <algorithm>

#include "cuda/column_sums.cuh"
#include "cuda/dropout.cuh"
#include "cuda/ids.cuh"
#include "cuda/sequences.cuh"
#include "ops/user_item_embedding/launch.h"

namespace ssept::cuda {
namespace {

template <class T>
__device__ __forceinline__ Sequences sequences_of(const UserItemEmbedding<T>& in) {
  return {in.cu_seqlens, in.size.num_sequences, in.size.num_tokens};
}

// One warp for one token. VEC divides Di and Du, so a pack is of the item or of the user.
template <class T, int VEC>
__global__ void __launch_bounds__(kThreadsPerBlock)
    forward_kernel(UserItemEmbedding<T> in, T* __restrict__ out, BadIdNote* note) {
  using A = Accumulator<T>;
  const UserItemEmbeddingSizes& s = in.size;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp;
  if (n >= s.num_tokens) return;
  const Sequences sequences = sequences_of(in);
  const bool real = n < sequences.num_real();
  const T *item_row = nullptr, *user_row = nullptr, *position_row = nullptr;
  if (real) {
    const int64_t item = in.items[n];
    if (usable(item, s.item_rows, IdArgument::kItems, note))
      item_row = in.item_weight + item * s.item_width;
    position_row =
        in.position_weight + usable_position(in.positions[n], s.position_rows, note) * s.width;
    if (in.users != nullptr) {
      const int64_t user = in.users[sequences.owner_of(n)];
      if (usable(user, s.user_rows, IdArgument::kUsers, note))
        user_row = in.user_weight + user * s.user_width;
    }
  }
  const DropoutMask mask(in.dropout);
  for (int64_t column = lane * kQuad; column < s.width; column += kWarpSize * kQuad) {
    A x[kQuad] = {};
    if (real) {
      load_quad<VEC>(position_row, column, s.width, x);
#pragma unroll
      for (int i = 0; i < kQuad; i += VEC) {
        const int64_t c = column + i;
        const bool of_item = c < s.item_width;
        const T* row = of_item ? item_row : user_row;
        if (row == nullptr || c >= s.width) continue;
        const auto pack =
            *reinterpret_cast<const Pack<T, VEC>*>(row + (of_item ? c : c - s.item_width));
        const A scale = static_cast<A>(of_item ? s.item_scale : s.user_scale);
#pragma unroll
        for (int j = 0; j < VEC; ++j) x[i + j] += scale * widen(pack.value[j]);
      }
      mask.apply(x, n, column);
    }
    store_quad<VEC>(out + n * s.width, column, s.width, x);
  }
}

// A quad of the gradient before dropout.
template <int VEC, class T, class A = Accumulator<T>>
__device__ __forceinline__ void load_undropped(const UserItemEmbedding<T>& in,
                                               const DropoutMask& mask, const T* grad, int64_t n,
                                               int64_t column, A (&g)[kQuad]) {
  load_quad<VEC>(grad + n * in.size.width, column, in.size.width, g);
  mask.apply(g, n, column);
}

// One warp for token n: adds its gradient to its item's, by atomics.
template <int VEC, class T, class A = Accumulator<T>>
__device__ __forceinline__ void add_to_item(const UserItemEmbedding<T>& in, int64_t n,
                                            const T* grad, A* grad_item) {
  const UserItemEmbeddingSizes& s = in.size;
  const int lane = threadIdx.x % kWarpSize;
  if (n >= sequences_of(in).num_real()) return;
  const int64_t item = in.items[n];
  if (item <= 0 || item >= s.item_rows) return;
  const DropoutMask mask(in.dropout);
  for (int64_t column = lane * kQuad; column < s.item_width; column += kWarpSize * kQuad) {
    A g[kQuad];
    load_undropped<VEC>(in, mask, grad, n, column, g);
#pragma unroll
    for (int j = 0; j < kQuad; ++j) g[j] *= static_cast<A>(s.item_scale);
#pragma unroll
    for (int i = 0; i < kQuad; i += VEC)
      if (column + i < s.item_width)
        atomic_add<VEC>(grad_item + item * s.item_width + column + i, g + i);
  }
}

// The same in a fixed order: the warp at the first of an item's tokens sums all of them.
template <int VEC, class T, class A = Accumulator<T>>
__device__ __forceinline__ void sum_item_in_order(const UserItemEmbedding<T>& in, int64_t begin,
                                                  const T* grad, const int64_t* item_order,
                                                  A* grad_item) {
  const UserItemEmbeddingSizes& s = in.size;
  const int lane = threadIdx.x % kWarpSize;
  const int64_t num_real = sequences_of(in).num_real();
  if (begin >= s.num_tokens) return;
  const int64_t item = in.items[item_order[begin]];
  if (item <= 0 || item >= s.item_rows) return;
  if (begin > 0 && in.items[item_order[begin - 1]] == item) return;
  const DropoutMask mask(in.dropout);
  for (int64_t column = lane * kQuad; column < s.item_width; column += kWarpSize * kQuad) {
    A sum[kQuad] = {};
    for (int64_t e = begin; e < s.num_tokens && in.items[item_order[e]] == item; ++e) {
      if (item_order[e] >= num_real) continue;
      A g[kQuad];
      load_undropped<VEC>(in, mask, grad, item_order[e], column, g);
#pragma unroll
      for (int j = 0; j < kQuad; ++j) sum[j] += g[j];
    }
#pragma unroll
    for (int j = 0; j < kQuad; ++j)
      if (column + j < s.item_width)
        grad_item[item * s.item_width + column + j] += sum[j] * static_cast<A>(s.item_scale);
  }
}

// A block for the user of sequence b, unless an earlier sequence is the user's: the sum over the
// tokens of all their sequences, in a fixed order.
template <int VEC, class T, class A = Accumulator<T>>
__device__ __forceinline__ void sum_user(const UserItemEmbedding<T>& in, int64_t b, const T* grad,
                                         A* grad_user, BadIdNote* note) {
  const UserItemEmbeddingSizes& s = in.size;
  const Sequences sequences = sequences_of(in);
  const int64_t first = s.item_width / kQuad * kQuad;  // the quad in which the user's columns begin
  const ColumnSums sums(s.width - first);
  const int64_t column = first + sums.column;
  const int64_t user = in.users[b];
  if (!usable(user, s.user_rows, IdArgument::kUsers, note)) return;
  const DropoutMask mask(in.dropout);
  A sum[kQuad] = {};
  const auto add = [&](int64_t sequence) {
    if (!sums.works()) return;
    const int64_t end = sequences.end(sequence);
    for (int64_t n = sequences.begin(sequence) + sums.lane; n < end; n += sums.lanes) {
      A g[kQuad];
      load_undropped<VEC>(in, mask, grad, n, column, g);
#pragma unroll
      for (int j = 0; j < kQuad; ++j) sum[j] += g[j];
    }
  };
  if (!for_each_sequence_of_user(in.users, s.num_sequences, b, add)) return;
  sums.reduce(sum);
  if (sums.lane != 0) return;
#pragma unroll
  for (int j = 0; j < kQuad; ++j) {
    const int64_t of_user = column + j - s.item_width;
    if (of_user >= 0 && of_user < s.user_width)
      grad_user[user * s.user_width + of_user] += sum[j] * static_cast<A>(s.user_scale);
  }
}

// The first blocks for items, by one warp for one token, and the others for a sequence's user each.
// item_order: for sums in a fixed order, or null.
template <class T, int VEC, class A = Accumulator<T>>
__global__ void __launch_bounds__(kSumThreads)
    backward_items_and_users_kernel(UserItemEmbedding<T> in, int64_t item_blocks,
                                    const T* __restrict__ grad,
                                    const int64_t* __restrict__ item_order,
                                    A* __restrict__ grad_item, A* __restrict__ grad_user,
                                    BadIdNote* note) {
  if (blockIdx.x >= item_blocks)
    return sum_user<VEC>(in, blockIdx.x - item_blocks, grad, grad_user, note);
  if (blockIdx.y > 0) return;
  const int64_t n = (int64_t{blockIdx.x} * kSumThreads + threadIdx.x) / kWarpSize;
  if (item_order == nullptr)
    add_to_item<VEC>(in, n, grad, grad_item);
  else
    sum_item_in_order<VEC>(in, n, grad, item_order, grad_item);
}

// Block x for position x. Starts the other tables, for the kernel after it.
template <class T, int VEC, class A = Accumulator<T>>
__global__ void __launch_bounds__(kSumThreads)
    backward_positions_kernel(UserItemEmbedding<T> in, const T* __restrict__ grad,
                              const T* __restrict__ more_item, const T* __restrict__ more_user,
                              A* __restrict__ grad_item, A* __restrict__ grad_user,
                              A* __restrict__ grad_position) {
  const UserItemEmbeddingSizes& s = in.size;
  share_start(grad_item, more_item, s.item_rows * s.item_width);
  share_start(grad_user, more_user, s.user_rows * s.user_width);
  if (s.position_rows == 0) return;
  const ColumnSums sums(s.width);
  const DropoutMask mask(in.dropout);
  A sum[kQuad] = {};
  for_each_token_at(blockIdx.x, in.positions, s.position_rows, sequences_of(in).num_real(), sums,
                    [&](int64_t n) {
                      A g[kQuad];
                      load_undropped<VEC>(in, mask, grad, n, sums.column, g);
#pragma unroll
                      for (int j = 0; j < kQuad; ++j) sum[j] += g[j];
                    });
  sums.reduce(sum);
  if (sums.lane == 0)
    store_quad<VEC>(grad_position + blockIdx.x * s.width, sums.column, s.width, sum);
}

}  // namespace

template <class T>
cudaError_t UserItemEmbeddingKernels<T>::forward(const UserItemEmbedding<T>& in, T* out,
                                                 BadIdNote* note, cudaStream_t stream) {
  const UserItemEmbeddingSizes& s = in.size;
  if (s.num_tokens == 0 || s.width == 0) return cudaSuccess;
  return with_pack_size<T>({s.item_width, s.user_width},
                           {in.item_weight, in.user_weight, in.position_weight, out},
                           [&]<int VEC>() {
                             return launch(forward_kernel<T, VEC>, blocks_of_warps(s.num_tokens),
                                           kThreadsPerBlock, 0, stream, in, out, note);
                           });
}

template <class T>
cudaError_t UserItemEmbeddingKernels<T>::backward(const UserItemEmbedding<T>& in, const T* grad,
                                                  const int64_t* item_order, const T* more_item,
                                                  const T* more_user, A* grad_item, A* grad_user,
                                                  A* grad_position, BadIdNote* note,
                                                  cudaStream_t stream) {
  const UserItemEmbeddingSizes& s = in.size;
  if (s.width == 0) return cudaSuccess;
  return with_pack_size<T>({s.item_width, s.user_width}, {grad}, [&]<int VEC>() {
    const dim3 positions(static_cast<unsigned>(std::max<int64_t>(1, s.position_rows)),
                         sum_blocks(s.width));
    cudaError_t error = launch(backward_positions_kernel<T, VEC>, positions, kSumThreads, 0, stream,
                               in, grad, more_item, more_user, grad_item, grad_user, grad_position);
    const int64_t columns = s.width - s.item_width / kQuad * kQuad;
    const int64_t warps = s.item_width > 0 ? s.num_tokens : 0, of_block = kSumThreads / kWarpSize;
    const int64_t item_blocks = (warps + of_block - 1) / of_block;
    const int64_t user_blocks = in.users != nullptr && s.user_width > 0 ? s.num_sequences : 0;
    if (error == cudaSuccess && item_blocks + user_blocks > 0)
      error = launch(backward_items_and_users_kernel<T, VEC>,
                     dim3(static_cast<unsigned>(item_blocks + user_blocks),
                          user_blocks > 0 ? sum_blocks(columns) : 1),
                     kSumThreads, 0, stream, in, item_blocks, grad, item_order, grad_item,
                     grad_user, note);
    return error;
  });
}

template struct UserItemEmbeddingKernels<float>;
template struct UserItemEmbeddingKernels<double>;
template struct UserItemEmbeddingKernels<__half>;
template struct UserItemEmbeddingKernels<__nv_bfloat16>;

}  // namespace ssept::cuda
