// What the kernels of `top_k` and `item_ranks` share: the scores of an item, and the items that a
// query has seen.
#pragma once
#include "cuda/ids.cuh"
#include "cuda/launch.cuh"
#include "ops/top_k/params.h"

namespace ssept::cuda {

// Queries that a thread scores an item for at once.
template <class A>
constexpr int kQueriesPerBlock = sizeof(A) == 4 ? 4 : 2;

// By all threads of a block: copies `count` queries, and zeros up to QUERIES, to shared memory.
template <int QUERIES, class T, class A = Accumulator<T>>
__device__ __forceinline__ void copy_queries(const Ranking<T>& in, int64_t first, int64_t count,
                                             A* to) {
  const int64_t width = in.table.width;
  for (int64_t i = threadIdx.x; i < QUERIES * width; i += blockDim.x)
    to[i] = i < count * width ? in.queries[first * width + i] : A(0);
}

// The scores of an item for (QUERIES, W) queries. Each is the sum over the elements of fma(query,
// item, sum) in their order, so that an item has the same score in all kernels.
template <int QUERIES, class T, class A = Accumulator<T>>
__device__ __forceinline__ void score_item(const ItemTable<T>& table, int64_t id, const A* queries,
                                           A (&scores)[QUERIES]) {
  const int64_t width = table.width, stride = table.packed ? kPackedItems : 1;
  const T* row =
      table.data +
      (table.packed ? id / kPackedItems * width * kPackedItems + id % kPackedItems : id * width);
#pragma unroll
  for (int q = 0; q < QUERIES; ++q) scores[q] = 0;
  for (int64_t d = 0; d < width; ++d) {
    const A x = widen(row[d * stride]);
#pragma unroll
    for (int q = 0; q < QUERIES; ++q) scores[q] = fma(queries[q * width + d], x, scores[q]);
  }
  if (table.scale == nullptr) return;
#pragma unroll
  for (int q = 0; q < QUERIES; ++q) scores[q] *= table.scale[id];
}

template <class T>
__device__ __forceinline__ bool has_seen(const Ranking<T>& in, int64_t query, int64_t id) {
  if (in.seen_offsets == nullptr) return false;
  const int64_t begin = max(int64_t{0}, in.seen_offsets[query]);
  const int64_t end = min(in.num_seen, in.seen_offsets[query + 1]);
  for (int64_t i = begin; i < end; ++i)
    if (in.seen_items[i] == id) return true;
  return false;
}

// By `num_threads` threads: notes seen ids outside the table. They are compared, never looked up.
template <class T>
__device__ __forceinline__ void note_bad_seen(const Ranking<T>& in, int64_t thread,
                                              int64_t num_threads, BadIdNote* note) {
  for (int64_t i = thread; i < in.num_seen; i += num_threads)
    usable(in.seen_items[i], in.table.rows, IdArgument::kSeenItems, note);
}

}  // namespace ssept::cuda
