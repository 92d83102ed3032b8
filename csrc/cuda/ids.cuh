// Looking at ids and sequences from a kernel.
#pragma once
#include "cuda/bad_id.h"
#include "cuda/launch.cuh"

namespace ssept::cuda {

// Notes an id outside its table, unless another waits to be read.
__device__ __forceinline__ void note_bad_id(int64_t id, int64_t table_rows, IdArgument argument,
                                            BadIdNote* note) {
  if (atomicCAS(&note->claimed, 0u, 1u) != 0u) return;
  note->argument = argument;
  note->id = id;
  note->table_rows = table_rows;
  __threadfence_system();
  *static_cast<volatile unsigned int*>(&note->ready) = 1;
}

// True where `id` can be looked up; 0 is padding and cannot, and an id outside the table is noted.
__device__ __forceinline__ bool usable(int64_t id, int64_t table_rows, IdArgument argument,
                                       BadIdNote* note) {
  if (id > 0 && id < table_rows) return true;
  if (id != 0) note_bad_id(id, table_rows, argument, note);
  return false;
}

// The position itself, or, as there is no padding among positions, 0 for one outside the table,
// which is noted.
__device__ __forceinline__ int64_t usable_position(int64_t position, int64_t table_rows,
                                                   BadIdNote* note) {
  if (position >= 0 && position < table_rows) return position;
  note_bad_id(position, table_rows, IdArgument::kPositions, note);
  return 0;
}

// The sequence that owns a token, in all lanes of a warp, which search together: two rounds for up
// to 1024 sequences. `token` must be below cu_seqlens[num_sequences].
__device__ __forceinline__ int64_t sequence_of(int64_t token, const int32_t* cu_seqlens,
                                               int64_t num_sequences) {
  const int lane = threadIdx.x % kWarpSize;
  int64_t low = 0, high = num_sequences;  // cu_seqlens[low] <= token < cu_seqlens[high]
  while (high - low > 1) {
    const int64_t step = (high - low + kWarpSize - 1) / kWarpSize;
    const int64_t probe = low + lane * step;
    const unsigned before = __ballot_sync(kAllLanes, probe < high && cu_seqlens[probe] <= token);
    low += (kWarpSize - 1 - __clz(static_cast<int>(before))) * step;
    high = min(low + step, high);
  }
  return low;
}

}  // namespace ssept::cuda
