// Launchers of the kernels of `top_k` and `item_ranks`. They queue work on `stream`, never wait,
// and return the first error.
#pragma once
#include <cuda_runtime_api.h>

#include "cuda/bad_id.h"
#include "ops/top_k/params.h"

namespace ssept::cuda {

// The largest k whose candidates find room in shared memory.
constexpr int64_t kMaxK = 1024;

// Parts of the items that blocks of their own rank, where there are few queries.
int64_t ranking_parts(int64_t num_queries, int64_t num_items);

// Writes the best of each part, (parts, B, k), to part_items and part_scores, and then the best of
// all; with one part, these are not used.
template <class T>
cudaError_t launch_top_k(const TopK<T>& in, int64_t parts, int64_t* part_items,
                         Accumulator<T>* part_scores, BadIdNote* note, cudaStream_t stream);

// Writes the targets' scores and the ranks. `parts` as for `launch_top_k`.
template <class T>
cudaError_t launch_item_ranks(const ItemRanks<T>& in, int64_t parts, BadIdNote* note,
                              cudaStream_t stream);

}  // namespace ssept::cuda
