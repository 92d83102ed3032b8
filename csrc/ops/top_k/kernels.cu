// CUDA kernels of `top_k`. A block scores a part of the items for a few queries, an item a thread,
// and keeps what may be among the best in shared memory, where it sorts it when that is full. A
// second kernel does the same with the best of all parts. Scores are compared first, then ids, so
// that the order in which threads find them changes nothing.
#include <algorithm>
#include <climits>

#include "cuda/shared_memory.h"
#include "ops/top_k/launch.h"
#include "ops/top_k/scores.cuh"

namespace ssept::cuda {
namespace {

constexpr int kThreads = 128;
// On a multiprocessor: without this limit, ptxas spills registers to fit more blocks.
constexpr int kBlocksAtOnce = 8;
constexpr int64_t kBlocksWanted = 512, kLeastItems = 16 * kThreads;

template <class A>
__device__ __forceinline__ A lowest() {
  return static_cast<A>(-INFINITY);
}

// What may be among the k best of each of QUERIES queries, in the block's shared memory.
template <class A, int QUERIES>
struct Best {
  A *scores, *bounds;  // (QUERIES, capacity), (QUERIES): only scores above can be among the best
  int *places, *sizes, *broken;  // (QUERIES, capacity), (QUERIES): whether a score is not finite
  int k, capacity;

  __device__ __forceinline__ Best(unsigned char* memory, int k, int capacity)
      : scores(reinterpret_cast<A*>(memory)),
        bounds(scores + QUERIES * capacity),
        places(reinterpret_cast<int*>(bounds + QUERIES)),
        sizes(places + QUERIES * capacity),
        broken(sizes + QUERIES),
        k(k),
        capacity(capacity) {
    if (threadIdx.x < QUERIES) {
      bounds[threadIdx.x] = lowest<A>();
      sizes[threadIdx.x] = broken[threadIdx.x] = 0;
    }
    __syncthreads();
  }

  // By one of many threads, of places that come in rising order where scores are equal.
  __device__ __forceinline__ void add(int q, A score, int place) {
    const int slot = atomicAdd(&sizes[q], 1);
    scores[q * capacity + slot] = score;
    places[q * capacity + slot] = place;
  }

  // By all threads: makes room for another one of each of them.
  __device__ __forceinline__ void make_room() {
    __syncthreads();
    for (int q = 0; q < QUERIES; ++q)
      if (sizes[q] > capacity - kThreads) sort(q);
    __syncthreads();
  }

  // By all threads: leaves the k best, best first. A bitonic sort, as `capacity` is a power of 2.
  __device__ __forceinline__ void sort(int q) {
    A* score = scores + q * capacity;
    int* place = places + q * capacity;
    const int size = sizes[q];
    for (int i = size + threadIdx.x; i < capacity; i += kThreads) {
      score[i] = lowest<A>();
      place[i] = INT_MAX;
    }
    for (int length = 2; length <= capacity; length *= 2)
      for (int step = length / 2; step > 0; step /= 2) {
        __syncthreads();
        for (int i = threadIdx.x; i < capacity; i += kThreads) {
          const int j = i ^ step;
          if (j < i) continue;
          const bool better = score[i] > score[j] || (score[i] == score[j] && place[i] < place[j]);
          if (better == ((i & length) == 0)) continue;
          const A other = score[i];
          const int other_place = place[i];
          score[i] = score[j];
          place[i] = place[j];
          score[j] = other;
          place[j] = other_place;
        }
      }
    __syncthreads();
    if (threadIdx.x == 0) {
      sizes[q] = min(size, k);
      if (size >= k) bounds[q] = score[k - 1];
    }
    __syncthreads();
  }

  // By all threads: writes the k best of a query; item_of(place) is the item.
  template <class ItemOf>
  __device__ __forceinline__ void write(int q, A* to_scores, int64_t* to_items, ItemOf&& item_of) {
    sort(q);
    const bool finite = broken[q] == 0;
    for (int i = threadIdx.x; i < k; i += kThreads) {
      const bool some = finite && i < sizes[q];
      to_scores[i] = some ? scores[q * capacity + i] : finite ? lowest<A>() : static_cast<A>(NAN);
      to_items[i] = some ? item_of(places[q * capacity + i]) : 0;
    }
  }

  static size_t bytes(int capacity) {
    return QUERIES * ((capacity + 1) * sizeof(A) + (capacity + 2) * sizeof(int));
  }
};

// Room for k and for one more of each thread.
int capacity_for(int64_t k) {
  int capacity = 2 * kThreads;
  while (capacity < k + kThreads) capacity *= 2;
  return capacity;
}

// Block (x, y) ranks part y of the items for the x-th few queries.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce)
    best_of_part_kernel(TopK<T> in, int64_t part_size, int capacity, int64_t* part_items,
                        Accumulator<T>* part_scores, BadIdNote* note) {
  using A = Accumulator<T>;
  constexpr int kQueries = kQueriesPerBlock<A>;
  const int64_t first_query = static_cast<int64_t>(blockIdx.x) * kQueries;
  const int64_t first = blockIdx.y * part_size, last = min(in.num_items, first + part_size);
  Best<A, kQueries> best(smem_raw, static_cast<int>(in.k), capacity);
  A* queries = reinterpret_cast<A*>(
      smem_raw + kQueries * ((capacity + 1) * sizeof(A) + (capacity + 2) * sizeof(int)));
  const int64_t count = min(static_cast<int64_t>(kQueries), in.num_queries - first_query);
  copy_queries<kQueries>(in, first_query, count, queries);
  if (blockIdx.x == 0 && blockIdx.y == 0) note_bad_seen(in, threadIdx.x, kThreads, note);
  __syncthreads();
  for (int64_t start = first; start < last; start += kThreads) {
    const int64_t place = start + threadIdx.x;
    int64_t id = 0;
    if (place < last) id = in.candidates == nullptr ? place + 1 : in.candidates[place];
    if (place < last && usable(id, in.table.rows, IdArgument::kCandidates, note)) {
      A scores[kQueries];
      score_item(in.table, id, queries, scores);
#pragma unroll
      for (int q = 0; q < kQueries; ++q) {
        if (q >= count) break;
        const A score = scores[q];
        if (!isfinite(score))
          atomicExch(&best.broken[q], 1);
        else if (score > best.bounds[q] && !has_seen(in, first_query + q, id))
          best.add(q, score, static_cast<int>(place - first));
      }
    }
    best.make_room();
  }
  for (int q = 0; q < count; ++q) {
    const int64_t to = (blockIdx.y * in.num_queries + first_query + q) * in.k;
    best.write(q, part_scores + to, part_items + to, [&](int at) {
      return in.candidates == nullptr ? first + at + 1 : in.candidates[first + at];
    });
  }
}

// A block takes the best of all parts of a query.
template <class A>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce)
    best_of_all_kernel(int64_t parts, int64_t num_queries, int k, int capacity,
                       const int64_t* part_items, const A* part_scores, int64_t* items, A* scores) {
  const int64_t query = blockIdx.x;
  Best<A, 1> best(smem_raw, k, capacity);
  const auto at = [&](int place) { return (place / k * num_queries + query) * k + place % k; };
  const int count = static_cast<int>(parts * k);
  for (int start = 0; start < count; start += kThreads) {
    const int place = start + static_cast<int>(threadIdx.x);
    if (place < count) {
      const A score = part_scores[at(place)];
      if (isnan(score))
        atomicExch(&best.broken[0], 1);
      else if (part_items[at(place)] != 0 && score > best.bounds[0])
        best.add(0, score, place);
    }
    best.make_room();
  }
  best.write(0, scores + query * k, items + query * k,
             [&](int place) { return part_items[at(place)]; });
}

}  // namespace

int64_t ranking_parts(int64_t num_queries, int64_t num_items) {
  const int64_t blocks = std::max<int64_t>(1, num_queries / 4);
  return std::max<int64_t>(1, std::min(kBlocksWanted / blocks, num_items / kLeastItems));
}

template <class T>
cudaError_t launch_top_k(const TopK<T>& in, int64_t parts, int64_t* part_items,
                         Accumulator<T>* part_scores, BadIdNote* note, cudaStream_t stream) {
  using A = Accumulator<T>;
  constexpr int kQueries = kQueriesPerBlock<A>;
  if (in.num_queries * in.k == 0) return cudaSuccess;
  const int capacity = capacity_for(in.k);
  const size_t bytes = Best<A, kQueries>::bytes(capacity) + kQueries * in.table.width * sizeof(A);
  const auto kernel = best_of_part_kernel<T>;
  cudaError_t error = allow_shared_memory(reinterpret_cast<const void*>(kernel), "top_k", bytes);
  if (error != cudaSuccess) return error;
  const dim3 grid(static_cast<unsigned>((in.num_queries + kQueries - 1) / kQueries),
                  static_cast<unsigned>(parts));
  const bool whole = parts == 1;
  error = launch(kernel, grid, kThreads, bytes, stream, in, (in.num_items + parts - 1) / parts,
                 capacity, whole ? in.items : part_items, whole ? in.scores : part_scores, note);
  if (error != cudaSuccess || whole) return error;
  return launch(best_of_all_kernel<A>, dim3(static_cast<unsigned>(in.num_queries)), kThreads,
                Best<A, 1>::bytes(capacity), stream, parts, in.num_queries, static_cast<int>(in.k),
                capacity, part_items, part_scores, in.items, in.scores);
}

template cudaError_t launch_top_k(const TopK<int8_t>&, int64_t, int64_t*, float*, BadIdNote*,
                                  cudaStream_t);
template cudaError_t launch_top_k(const TopK<__half>&, int64_t, int64_t*, float*, BadIdNote*,
                                  cudaStream_t);
template cudaError_t launch_top_k(const TopK<__nv_bfloat16>&, int64_t, int64_t*, float*, BadIdNote*,
                                  cudaStream_t);
template cudaError_t launch_top_k(const TopK<float>&, int64_t, int64_t*, float*, BadIdNote*,
                                  cudaStream_t);
template cudaError_t launch_top_k(const TopK<double>&, int64_t, int64_t*, double*, BadIdNote*,
                                  cudaStream_t);

}  // namespace ssept::cuda
