// CUDA kernels of `item_ranks`. The first scores the targets; in the second, a block scores a part
// of the items for a few queries, an item a thread, and adds up how many of them beat the target.
// Counts are integers, so that the order of the sum changes nothing.
#include <algorithm>

#include "cuda/shared_memory.h"
#include "ops/top_k/launch.h"
#include "ops/top_k/scores.cuh"

namespace ssept::cuda {
namespace {

constexpr int kThreads = 128;
// Threads of the first kernel, unless there are more queries.
constexpr int64_t kMostThreads = 64 << 10;

// Adds a warp's counts: atomicAdd has no overload for int64_t.
__device__ __forceinline__ void add_to_rank(int64_t* rank, int count) {
  const int sum = group_sum<kWarpSize>(count);
  if (threadIdx.x % kWarpSize == 0 && sum != 0)
    atomicAdd(reinterpret_cast<unsigned long long*>(rank), sum);
}

// A thread scores the target of a query and zeroes its ranks. All of them check the seen ids.
template <class T>
__global__ void __launch_bounds__(kThreads) target_scores_kernel(ItemRanks<T> in, BadIdNote* note) {
  const int64_t query = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  note_bad_seen(in, query, static_cast<int64_t>(gridDim.x) * kThreads, note);
  if (query >= in.num_queries) return;
  Accumulator<T> score[1]{};
  const int64_t target = in.targets[query];
  if (usable(target, in.table.rows, IdArgument::kTargets, note) && in.given == nullptr)
    score_item(in.table, target, in.queries + query * in.table.width, score);
  in.scores[query] = in.given == nullptr ? score[0] : in.given[query];
  in.ranks[2 * query] = in.ranks[2 * query + 1] = 0;
}

// Block (x, y) compares part y of the items with the targets of the x-th few queries.
template <class T>
__global__ void __launch_bounds__(kThreads) item_ranks_kernel(ItemRanks<T> in, int64_t part_size) {
  using A = Accumulator<T>;
  constexpr int kQueries = kQueriesPerBlock<A>;
  const int64_t first_query = static_cast<int64_t>(blockIdx.x) * kQueries;
  const int64_t count = min(static_cast<int64_t>(kQueries), in.num_queries - first_query);
  const int64_t first = blockIdx.y * part_size + 1;
  const int64_t end = min(in.num_items + 1, first + part_size);
  A* queries = reinterpret_cast<A*>(smem_raw);
  copy_queries<kQueries>(in, first_query, count, queries);
  __syncthreads();
  A bounds[kQueries];
  int64_t targets[kQueries];
  int higher[kQueries]{}, at_least[kQueries]{};
#pragma unroll
  for (int q = 0; q < kQueries; ++q) {
    bounds[q] = q < count ? in.scores[first_query + q] : A(0);
    targets[q] = q < count ? in.targets[first_query + q] : 0;
  }
  for (int64_t id = first + threadIdx.x; id < end; id += kThreads) {
    A scores[kQueries];
    score_item(in.table, id, queries, scores);
#pragma unroll
    for (int q = 0; q < kQueries; ++q) {
      // Few items beat the target of a good model, and only those are looked up among the seen.
      if (q >= count || !(scores[q] >= bounds[q]) || id == targets[q]) continue;
      if (has_seen(in, first_query + q, id)) continue;
      higher[q] += scores[q] > bounds[q];
      ++at_least[q];
    }
  }
#pragma unroll
  for (int q = 0; q < kQueries; ++q) {
    if (q >= count) break;  // for all threads
    add_to_rank(in.ranks + 2 * (first_query + q), higher[q]);
    add_to_rank(in.ranks + 2 * (first_query + q) + 1, at_least[q]);
  }
}

dim3 blocks(int64_t count, int64_t each, int64_t y = 1) {
  return dim3(static_cast<unsigned>((count + each - 1) / each), static_cast<unsigned>(y));
}

}  // namespace

template <class T>
cudaError_t launch_item_ranks(const ItemRanks<T>& in, int64_t parts, BadIdNote* note,
                              cudaStream_t stream) {
  using A = Accumulator<T>;
  constexpr int kQueries = kQueriesPerBlock<A>;
  if (in.num_queries == 0) return cudaSuccess;
  const int64_t threads = std::max(in.num_queries, std::min(in.num_seen, kMostThreads));
  cudaError_t error =
      launch(target_scores_kernel<T>, blocks(threads, kThreads), kThreads, 0, stream, in, note);
  if (error != cudaSuccess || in.num_items == 0) return error;
  const size_t bytes = kQueries * in.table.width * sizeof(A);
  const auto kernel = item_ranks_kernel<T>;
  error = allow_shared_memory(reinterpret_cast<const void*>(kernel), "item_ranks", bytes);
  if (error != cudaSuccess) return error;
  return launch(kernel, blocks(in.num_queries, kQueries, parts), kThreads, bytes, stream, in,
                (in.num_items + parts - 1) / parts);
}

template cudaError_t launch_item_ranks(const ItemRanks<int8_t>&, int64_t, BadIdNote*, cudaStream_t);
template cudaError_t launch_item_ranks(const ItemRanks<__half>&, int64_t, BadIdNote*, cudaStream_t);
template cudaError_t launch_item_ranks(const ItemRanks<__nv_bfloat16>&, int64_t, BadIdNote*,
                                       cudaStream_t);
template cudaError_t launch_item_ranks(const ItemRanks<float>&, int64_t, BadIdNote*, cudaStream_t);
template cudaError_t launch_item_ranks(const ItemRanks<double>&, int64_t, BadIdNote*, cudaStream_t);

}  // namespace ssept::cuda
