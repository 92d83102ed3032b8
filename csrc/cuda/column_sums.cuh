// Sums of rows, column by column, in a fixed order: no atomics, so the same bits every time.
#pragma once
#include <algorithm>

#include "cuda/parts.h"
#include "cuda/quads.cuh"

namespace ssept::cuda {

inline constexpr int kSumThreads = 512;
inline constexpr int kQuadsPerSumBlock = 64;

// blockIdx.y says which columns a block sums.
inline unsigned sum_blocks(int64_t width) {
  return static_cast<unsigned>((num_quads(width) + kQuadsPerSumBlock - 1) / kQuadsPerSumBlock);
}

// A block of kSumThreads threads: those of one lane lie side by side, each on a quad of columns;
// the lanes share the rows.
struct ColumnSums {
  int quads, lanes;      // of the block
  int64_t first_column;  // of the block
  int lane;              // of the thread; the threads left over have lane == lanes
  int64_t column;        // the first of the thread's quad

  __device__ __forceinline__ explicit ColumnSums(int64_t width) {
    const int64_t first = static_cast<int64_t>(blockIdx.y) * kQuadsPerSumBlock;
    first_column = first * kQuad;
    quads = static_cast<int>(
        min((width + kQuad - 1) / kQuad - first, static_cast<int64_t>(kQuadsPerSumBlock)));
    lanes = kSumThreads / quads;
    lane = min(static_cast<int>(threadIdx.x) / quads, lanes);
    column = (first + static_cast<int>(threadIdx.x) % quads) * kQuad;
  }

  __device__ __forceinline__ bool works() const { return lane < lanes; }

  // In lane 0: the sum over all lanes. The whole block must call it.
  template <class A>
  __device__ __forceinline__ void reduce(A (&sum)[kQuad]) const {
    __shared__ A partial[kSumThreads * kQuad];
    const int row = quads * kQuad, at = static_cast<int>(threadIdx.x) % quads * kQuad;
    __syncthreads();  // after an earlier call's reads
    if (works())
#pragma unroll
      for (int j = 0; j < kQuad; ++j) partial[lane * row + at + j] = sum[j];
    __syncthreads();
    if (lane != 0) return;
    for (int l = 1; l < lanes; ++l)
#pragma unroll
      for (int j = 0; j < kQuad; ++j) sum[j] += partial[l * row + at + j];
  }

  // Writes the sum over all lanes of (width) columns. The whole block must call it.
  template <class A>
  __device__ __forceinline__ void write(A (&sum)[kQuad], int64_t width, A* to) const {
    reduce(sum);
    if (lane != 0) return;
#pragma unroll
    for (int j = 0; j < kQuad; ++j)
      if (column + j < width) to[column + j] = sum[j];
  }
};

// all.of[index], without an array of parameters that has to be in local memory.
template <class A, int COUNT>
__device__ __forceinline__ Parts<A> part_of(const PartsOf<A, COUNT>& all, unsigned index) {
  Parts<A> chosen = all.of[0];
#pragma unroll
  for (unsigned i = 1; i < COUNT; ++i)
    if (index == i) chosen = all.of[i];
  return chosen;
}

template <class A, int COUNT>
__global__ void __launch_bounds__(kSumThreads) sum_parts_kernel(PartsOf<A, COUNT> all) {
  const Parts<A> in = part_of(all, blockIdx.z);
  if (static_cast<int64_t>(blockIdx.y) * kQuadsPerSumBlock * kQuad >= in.width) return;
  const ColumnSums sums(in.width);
  A sum[kQuad] = {};
  if (sums.works()) {
    for (int64_t part = sums.lane; part < in.num_parts; part += sums.lanes) {
#pragma unroll
      for (int j = 0; j < kQuad; ++j)
        if (sums.column + j < in.width) sum[j] += in.parts[part * in.row + sums.column + j];
    }
  }
  sums.write(sum, in.width, in.sum);
}

template <class A, int COUNT>
cudaError_t launch_sum_parts(const PartsOf<A, COUNT>& all, cudaStream_t stream) {
  int64_t widest = 0;
  for (const Parts<A>& each : all.of) widest = std::max(widest, each.width);
  if (widest == 0) return cudaSuccess;
  return launch(sum_parts_kernel<A, COUNT>, dim3(1, sum_blocks(widest), COUNT), kSumThreads, 0,
                stream, all);
}

// Hands the tokens at one position to the lanes of a block, in a fixed order. Each block looks at
// all N positions: 8 bytes a token beside the row that a lane then reads, and no sort, which would
// be several launches. An impossible position counts as 0.
//   add(n) is called by the threads of one lane for each of its tokens.
template <class Add>
__device__ __forceinline__ void for_each_token_at(int64_t position, const int64_t* positions,
                                                  int64_t num_positions, int64_t num_real,
                                                  const ColumnSums& sums, Add&& add) {
  constexpr int kWarps = kSumThreads / kWarpSize;
  constexpr int kLooks = 16;  // of a thread, at once: their latencies overlap
  constexpr int kStretch = kLooks * kSumThreads;
  __shared__ uint16_t found[kStretch];  // tokens of a stretch at this position, from its start on
  __shared__ int32_t found_by_warp[kWarps];
  const int lane_in_warp = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  for (int64_t start = 0; start < num_real; start += kStretch) {
    unsigned votes[kLooks];
    int in_warp = 0;
#pragma unroll
    for (int look = 0; look < kLooks; ++look) {
      const int64_t n = start + look * kSumThreads + threadIdx.x;
      bool here = false;
      if (n < num_real) {
        const int64_t p = positions[n];
        here = (p < 0 || p >= num_positions ? 0 : p) == position;
      }
      votes[look] = __ballot_sync(kAllLanes, here);
      in_warp += __popc(votes[look]);
    }
    if (lane_in_warp == 0) found_by_warp[warp] = in_warp;
    __syncthreads();
    int slot = 0, total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      slot += w < warp ? found_by_warp[w] : 0;
      total += found_by_warp[w];
    }
#pragma unroll
    for (int look = 0; look < kLooks; ++look) {
      if (votes[look] >> lane_in_warp & 1)
        found[slot + __popc(votes[look] & ((1u << lane_in_warp) - 1))] =
            static_cast<uint16_t>(look * kSumThreads + threadIdx.x);
      slot += __popc(votes[look]);
    }
    __syncthreads();
    if (sums.works())
      for (int i = sums.lane; i < total; i += sums.lanes) add(start + found[i]);
    __syncthreads();
  }
}

}  // namespace ssept::cuda
