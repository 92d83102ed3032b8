// Looking at ids and sequences from a kernel.
#pragma once
#include "cuda/bad_id.h"
#include "cuda/launch.cuh"

namespace ssept::cuda {

// True where `id` can be looked up; 0 is padding and cannot, and an id outside the table is noted.
__device__ __forceinline__ bool usable(int64_t id, int64_t table_rows, IdArgument argument,
                                       BadIdNote* note) {
  if (id > 0 && id < table_rows) return true;
  if (id != 0 && atomicCAS(&note->claimed, 0u, 1u) == 0u) {
    note->argument = argument;
    note->id = id;
    note->table_rows = table_rows;
    __threadfence_system();
    *static_cast<volatile unsigned int*>(&note->ready) = 1;
  }
  return false;
}

// The sequence that owns a token; `token` must be below cu_seqlens[num_sequences].
__device__ __forceinline__ int64_t sequence_of(int64_t token, const int32_t* cu_seqlens,
                                               int64_t num_sequences) {
  int64_t low = 0, high = num_sequences;  // cu_seqlens[low] <= token < cu_seqlens[high]
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (cu_seqlens[middle] <= token ? low : high) = middle;
  }
  return low;
}

}  // namespace ssept::cuda
