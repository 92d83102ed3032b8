// Looking at ids from a kernel.
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

}  // namespace ssept::cuda
