// The relative bias of `causal_attention` in its kernels, and its gradient, summed in a fixed
// order.
#pragma once
#include "ops/causal_attention/tiles.cuh"

namespace ssept::cuda::attention {

// The bucket of the time between a query and a key of a segment. Those behind its last count as it.
template <class A>
__device__ __forceinline__ int time_bucket(const RelativeBias<A>& bias, const Segment& segment,
                                           int query, int key) {
  const int64_t q = bias.query_times[segment.q_begin + min(query, segment.num_queries - 1)];
  const int64_t k = bias.key_times[segment.k_begin + min(key, segment.num_keys - 1)];
  // Unsigned, because the difference of any two times must be defined.
  const auto between = static_cast<int64_t>(static_cast<uint64_t>(q) - static_cast<uint64_t>(k));
  return (__float_as_int(static_cast<float>(between < 1 ? 1 : between)) >> 22) - 2 * 127;
}

// Turns products of a warp's rows and columns into scores with their bias, for powers of 2. Rows
// are queries, or keys.
template <bool ROWS_ARE_KEYS, int COLUMNS, class A>
__device__ __forceinline__ void add_bias(Sums<A> (&scores)[COLUMNS / 8],
                                         const RelativeBias<A>& bias, const Segment& segment,
                                         double scale, int first_row, int first_column) {
  const A factor = static_cast<A>(scale * kLog2E);
#pragma unroll
  for (int j = 0; j < COLUMNS / 8; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = first_row + lane_row() + e / 2 * 8;
      const int column = first_column + j * 8 + lane_column() + e % 2;
      const int query = ROWS_ARE_KEYS ? column : row, key = ROWS_ARE_KEYS ? row : column;
      A sum = 0;
      if (bias.position != nullptr) {
        const int distance = segment.shift() + query - key;
        if (distance >= 0 && distance < bias.num_positions)
          sum = bias.position[segment.head * bias.num_positions + distance];
      }
      if (bias.time != nullptr)
        sum += bias.time[segment.head * kTimeBuckets + time_bucket(bias, segment, query, key)];
      scores[j].x[e] = scores[j].x[e] * factor + sum * static_cast<A>(kLog2E);
    }
}

// Writes the gradients of a warp's scores to its rows of a tile in shared memory, with zeros for
// keys that a query does not see. The first of num_rows queries sees the tile's first `seen`.
template <int COLUMNS, int LD, class A>
__device__ __forceinline__ void write_scores(A* rows, const Sums<A> (&grad_scores)[COLUMNS / 8],
                                             int num_rows, int seen) {
#pragma unroll
  for (int j = 0; j < COLUMNS / 8; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = lane_row() + e / 2 * 8, column = j * 8 + lane_column() + e % 2;
      const bool is_visible = row < num_rows && column < seen + row;
      rows[row * LD + column] = is_visible ? grad_scores[j].x[e] : A(0);
    }
}

// What a block adds to the gradient of the bias: its row of bias_partial.
template <class S, class A = typename S::A>
class BlockBiasSums {
 public:
  __device__ __forceinline__ void add_to(A* bias_partial, const RelativeBias<A>& bias,
                                         const Segment& segment) {
    row_ = bias_partial + (static_cast<int64_t>(segment.head) * gridDim.x + blockIdx.x) *
                              (bias.num_positions + kTimeBuckets);
  }

  // Adds a tile of scores' gradients.
  __device__ __forceinline__ void add(const A* tile, const RelativeBias<A>& bias,
                                      const Segment& segment, int first_query, int num_queries,
                                      int first_key) {
    const int first_distance = segment.shift() + first_query - first_key;
    if (bias.position != nullptr)
      for (int d = static_cast<int>(threadIdx.x); d < kRows + kKeys - 1; d += S::kThreads) {
        const int offset = d - (kKeys - 1);  // row - column, on a thread's diagonal
        A sum = 0;
        for (int row = max(0, offset); row < min(num_queries, kKeys + offset); ++row)
          sum += tile[row * kLd + row - offset];
        const int distance = first_distance + offset;
        if (distance >= 0 && distance < bias.num_positions) row_[distance] += sum;
      }
    if (bias.time != nullptr)
      for (int row = static_cast<int>(threadIdx.x) / kWarpSize; row < num_queries; row += kWarps)
        for (int first = 0; first < min(kKeys, first_distance + row + 1); first += kWarpSize) {
          const int column = first + lane_index();
          const bool is_visible = column < kKeys && column <= first_distance + row;
          add_time(is_visible, time_bucket(bias, segment, first_query + row, first_key + column),
                   is_visible ? tile[row * kLd + column] : A(0));
        }
  }

  // Writes what is summed in registers, warp by warp.
  __device__ __forceinline__ void finish(const RelativeBias<A>& bias) {
    for (int warp = 0; warp < kWarps; ++warp) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i)
        if (static_cast<int>(threadIdx.x) / kWarpSize == warp)
          row_[bias.num_positions + lane_index() + i * kWarpSize] += times_[i];
      __syncthreads();
    }
  }

 private:
  static constexpr int kLd = S::kScoreLd, kWarps = S::kWarps, kRows = S::kRows, kKeys = S::kKeys;
  static constexpr int kOwn = kTimeBuckets / kWarpSize;

  // Adds `value` of each lane whose `counts` is true to its bucket, one bucket after the other:
  // most neighbours have the same.
  __device__ __forceinline__ void add_time(bool counts, int bucket, A value) {
    for (unsigned left = __ballot_sync(kAllLanes, counts); left != 0;) {
      const int next = __shfl_sync(kAllLanes, bucket, __ffs(static_cast<int>(left)) - 1);
      const bool in_next = counts && bucket == next;
      const A sum = group_sum<kWarpSize>(in_next ? value : A(0));
#pragma unroll
      for (int i = 0; i < kOwn; ++i)
        if (next == lane_index() + i * kWarpSize) times_[i] += sum;
      left &= ~__ballot_sync(kAllLanes, in_next);
    }
  }

  A* row_ = nullptr;
  A times_[kOwn] = {};  // of a warp: lane l holds buckets l, l + 32, ...
};

constexpr int kBiasColumns = 32, kBiasThreads = 256;

// grad_position and grad_time of the head blockIdx.y: the sums of the rows of its blocks.
template <class T, class A = Accumulator<T>>
__global__ void __launch_bounds__(kBiasThreads)
    relative_bias_kernel(CausalAttentionGradients<T> g, RelativeBias<A> bias, int64_t num_rows) {
  constexpr int kLanes = kBiasThreads / kBiasColumns;
  __shared__ A partial[kBiasThreads];
  const int64_t columns = bias.num_positions + kTimeBuckets, head = blockIdx.y;
  const int64_t column = int64_t{blockIdx.x} * kBiasColumns + threadIdx.x % kBiasColumns;
  A sum = 0;
  if (column < columns)
    for (int64_t r = threadIdx.x / kBiasColumns; r < num_rows; r += kLanes)
      sum += g.bias_partial[(head * num_rows + r) * columns + column];
  partial[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x >= kBiasColumns || column >= columns) return;
  for (int lane = 1; lane < kLanes; ++lane) sum += partial[lane * kBiasColumns + threadIdx.x];
  if (column < bias.num_positions)
    g.grad_position[head * bias.num_positions + column] = sum;
  else if (g.grad_time != nullptr)
    g.grad_time[head * kTimeBuckets + column - bias.num_positions] = sum;
}

template <class T>
cudaError_t launch_relative_bias(const CausalAttentionWithBias<T>& in,
                                 const CausalAttentionGradients<T>& g, int64_t num_rows,
                                 cudaStream_t stream) {
  const int64_t columns = in.bias.num_positions + kTimeBuckets;
  const dim3 grid(static_cast<unsigned>((columns - 1) / kBiasColumns + 1),
                  static_cast<unsigned>(in.size.num_heads));
  if (grid.y == 0) return cudaSuccess;
  return launch(relative_bias_kernel<T>, grid, kBiasThreads, 0, stream, g, in.bias, num_rows);
}

}  // namespace ssept::cuda::attention
