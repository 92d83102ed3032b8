// The forward kernel of `causal_attention`: FlashAttention-2's order of work (Dao 2023), on packed
// sequences.
#pragma once
#include "ops/causal_attention/tiles.cuh"

namespace ssept::cuda {
namespace attention {

// Turns scores into 2^(factor · (score - maximum so far)) and rescales what was summed with an
// older maximum.
template <class M, int COLUMNS, int SLICE, class A>
__device__ __forceinline__ void online_softmax(Sums<A> (&scores)[COLUMNS / 8], A factor,
                                               A (&maximum)[2], A (&sum)[2],
                                               Sums<A> (&out)[SLICE / 8]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    A largest = maximum[r];
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; ++j)
      largest = max(largest, max(scores[j].x[2 * r], scores[j].x[2 * r + 1]));
    largest = row_max(largest);
    // A row that has seen no key yet must not subtract infinities.
    const A offset = largest == -kInfinity<A> ? A(0) : largest * factor;
    const A correction = M::exp2(maximum[r] * factor - offset);
    maximum[r] = largest;
    sum[r] *= correction;
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; ++j)
#pragma unroll
      for (int e = 2 * r; e < 2 * r + 2; ++e) {
        scores[j].x[e] = M::exp2(scores[j].x[e] * factor - offset);
        sum[r] += scores[j].x[e];
      }
#pragma unroll
    for (int j = 0; j < SLICE / 8; ++j) {
      out[j].x[2 * r] *= correction;
      out[j].x[2 * r + 1] *= correction;
    }
  }
}

template <class M, int WIDTH, class T = typename M::Element, class A = Accumulator<T>>
__global__ void __launch_bounds__(Tiles<M, WIDTH>::kThreads, Tiles<M, WIDTH>::kMinBlocks)
    forward_kernel(CausalAttention<T> in, T* out, A* lse, int copy_bytes, int tiles_per_sequence) {
  using S = Tiles<M, WIDTH>;
  constexpr int kRows = S::kRows, kKeys = S::kKeys, kLd = S::kLd, kThreads = S::kThreads;
  T* const q_tile = reinterpret_cast<T*>(smem_raw);
  T* const k_tile = q_tile + kRows * kLd;
  T* const v_tile = k_tile + kKeys * kLd;
  const CausalAttentionSizes& size = in.size;
  const int head_size = static_cast<int>(size.head_size);
  const int64_t row = size.num_heads * size.head_size;
  Segment segment(size, in.cu_seqlens_q, in.cu_seqlens_k, tiles_per_sequence);
  if (segment.is_spare)
    segment.num_keys = 0;
  else  // the last queries see the most keys: begin with them
    segment.first_tile = tiles_per_sequence - 1 - segment.first_tile;
  if (segment.first_tile * int64_t{kRows} >= segment.num_queries) return;

  const int shift = segment.shift();
  const int first_feature = segment.slice * S::kForwardSlice;
  const int warp_row = threadIdx.x / kWarpSize * kWarpRows;
  const T* const k = in.k + segment.k_begin * row + segment.head * head_size;
  const T* const v = in.v + segment.k_begin * row + segment.head * head_size;
  const DropoutMask dropout(in.seed, in.dropout);
  const auto load_keys = [&](T* tile, const T* from, int first, int end) {
    load_tile<kKeys, WIDTH, kLd, kThreads>(tile, from + first * row, row, end - first, head_size,
                                           copy_bytes);
  };

  for (int64_t q0 = segment.first_tile * int64_t{kRows}; q0 < segment.num_queries;
       q0 += segment.tile_step * int64_t{kRows}) {
    const int num_rows = static_cast<int>(min(int64_t{kRows}, segment.num_queries - q0));
    const int first_query = static_cast<int>(q0) + warp_row;
    const int warp_rows = max(0, min(kWarpRows, num_rows - warp_row));
    // Keys that the tile's last query sees, and those the warp's last query does.
    const int num_keys = max(0, shift + static_cast<int>(q0) + num_rows);
    const int warp_keys = warp_rows == 0 ? 0 : max(0, shift + first_query + warp_rows);
    const int64_t first_entry = (segment.q_begin + first_query + lane_row()) * size.num_heads +
                                segment.head;  // of lse and of the dropout mask
    const int64_t entry[2] = {first_entry, first_entry + 8 * size.num_heads};

    OwnRows<M, WIDTH, kLd, 128> q(q_tile + warp_row * kLd);
    Sums<A> sums[S::kForwardSlice / 8];
    A maximum[2] = {-kInfinity<A>, -kInfinity<A>}, sum[2] = {};
    A factor = static_cast<A>(size.scale * kLog2E);
    if (num_keys > 0) {
      clear_padding<WIDTH, kLd, kThreads>(q_tile, kRows + 2 * kKeys, head_size);
      load_tile<kRows, WIDTH, kLd, kThreads>(
          q_tile, in.q + (segment.q_begin + q0) * row + segment.head * head_size, row, num_rows,
          head_size, copy_bytes);
      load_keys(k_tile, k, 0, num_keys);
    }
    for (int k0 = 0; k0 < num_keys; k0 += kKeys) {
      Sums<A> scores[kKeys / 8];
      wait_for_copies();
      __syncthreads();  // the keys are there, and no warp reads the last values any more
      load_keys(v_tile, v, k0, num_keys);
      if (k0 == 0) q.fetch();
      if (k0 < warp_keys) {
        multiply_rows<M, WIDTH, kLd, kKeys>(scores, q, k_tile);
        A score_factor = factor;
        if (factor <= 0) {  // the largest product is not the largest score
#pragma unroll
          for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) scores[j].x[e] *= factor;
          score_factor = 1;
        }
        if (k0 + kKeys > shift + first_query + 1) {
#pragma unroll
          for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e)
              if (k0 + j * 8 + lane_column() + e % 2 > shift + first_query + lane_row() + e / 2 * 8)
                scores[j].x[e] = -kInfinity<A>;
        }
        online_softmax<M, kKeys, S::kForwardSlice>(scores, score_factor, maximum, sum, sums);
        if (in.seed != nullptr) {
#pragma unroll
          for (int j = 0; j < kKeys / 8; ++j) {
            const unsigned kept = kept_by_rows(dropout, entry, k0 + j * 8);
#pragma unroll
            for (int e = 0; e < 4; ++e)
              if (!(kept >> e & 1)) scores[j].x[e] = 0;
          }
        }
      }
      wait_for_copies();
      __syncthreads();  // the values are there, and no warp reads the keys any more
      if (k0 + kKeys < num_keys) load_keys(k_tile, k, k0 + kKeys, num_keys);
      if (k0 < warp_keys)
        add_weighted_rows<M, S::kForwardSlice, kLd, kKeys>(sums, scores, v_tile + first_feature);
    }

    const A kept = in.seed == nullptr ? A(1) : static_cast<A>(in.dropout.scale);
    A out_factor[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[r] = row_sum(sum[r]);
      out_factor[r] = sum[r] > 0 ? kept / sum[r] : A(0);
      if (segment.slice == 0 && lane_column() == 0 && lane_row() + 8 * r < warp_rows) {
        const A log2_sum = maximum[r] * (factor <= 0 ? A(1) : factor) + log2(sum[r]);
        lse[entry[r]] = segment.is_spare ? A(0) : log2_sum * static_cast<A>(kLn2);
      }
    }
    if (warp_rows > 0)
      store_sums<S::kForwardSlice, kLd>(
          sums, out_factor, q_tile + warp_row * kLd,
          out + (segment.q_begin + first_query) * row + segment.head * head_size + first_feature,
          row, warp_rows, min(S::kForwardSlice, head_size - first_feature), copy_bytes);
    __syncthreads();  // the next tile's queries go where this one's output was
  }
}

}  // namespace attention

template <class T, bool kTf32>
cudaError_t CausalAttentionKernels<T, kTf32>::forward(const CausalAttention<T>& in, T* out, A* lse,
                                                      cudaStream_t stream) {
  using M = attention::Arithmetic<T, kTf32>;
  const int copy_bytes = attention::bytes_per_copy<T>(in.size.head_size, in.q, in.k, in.v, out);
  return attention::for_width_of<T>(in.size.head_size, [&]<int WIDTH>() {
    using S = attention::Tiles<M, WIDTH>;
    return attention::launch_tiles("causal_attention", attention::forward_kernel<M, WIDTH>, in.size,
                                   in.size.max_seqlen_q, S::kRows, S::kForwardSlice, S::kThreads,
                                   S::kForwardBytes, stream, in, out, lse, copy_bytes);
  });
}

}  // namespace ssept::cuda
