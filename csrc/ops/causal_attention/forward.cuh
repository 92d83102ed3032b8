// The forward kernel of `causal_attention`: FlashAttention-2's order of work (Dao 2023), on packed
// sequences.
#pragma once
#include "ops/causal_attention/relative_bias.cuh"

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
    const A subtracted = largest == -kInfinity<A> ? A(0) : largest;
    const A offset = subtracted * factor;
    // Exactly 1 where the maximum stays. Not so `maximum * factor - offset`, which becomes one
    // instruction with one rounding: over thousands of keys its errors add up.
    const A correction = M::exp2((maximum[r] - subtracted) * factor);
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

template <int COLUMNS, class A>
__device__ __forceinline__ void scale_scores(Sums<A> (&scores)[COLUMNS / 8], A factor) {
#pragma unroll
  for (int j = 0; j < COLUMNS / 8; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) scores[j].x[e] *= factor;
}

// Hides keys: a lane's first row sees those up to `last_seen`, counted from the tile's first.
template <int COLUMNS, class A>
__device__ __forceinline__ void mask_scores(Sums<A> (&scores)[COLUMNS / 8], int last_seen) {
#pragma unroll
  for (int j = 0; j < COLUMNS / 8; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (j * 8 + lane_column() + e % 2 > last_seen + e / 2 * 8) scores[j].x[e] = -kInfinity<A>;
}

template <int COLUMNS, class A>
__device__ __forceinline__ void drop_weights(Sums<A> (&weights)[COLUMNS / 8],
                                             const DropoutMask& dropout, const int64_t (&entry)[2],
                                             int first_key) {
#pragma unroll
  for (int j = 0; j < COLUMNS / 8; ++j) {
    const unsigned kept = kept_by_rows(dropout, entry, first_key + j * 8);
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (!(kept >> e & 1)) weights[j].x[e] = 0;
  }
}

// Turns the sums of a lane's queries into the factors of their outputs, and writes lse.
template <class A>
__device__ __forceinline__ void finish_rows(const Segment& segment, const QueryTile& tile,
                                            const A (&maximum)[2], A score_factor, A kept,
                                            A (&sum)[2], A* lse) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const A total = row_sum(sum[r]);
    sum[r] = total == 0 ? A(0) : kept / total;
    if (segment.slice == 0 && lane_column() == 0 && lane_row() + 8 * r < tile.warp_rows) {
      const A log2_sum = maximum[r] * score_factor + log2(total);
      lse[tile.entry[r]] = segment.is_spare ? A(0) : log2_sum * static_cast<A>(kLn2);
    }
  }
}

// Writes the sums of a warp's outputs, which `stage` has, and residuals; zeros behind the last
// sequence.
template <int SLICE, int LD, class T>
__device__ __forceinline__ void add_residual(const CausalAttentionOutputs<T>& outputs,
                                             int64_t offset, const T* stage, int num_rows,
                                             int num_features, const Heads& heads, bool is_spare) {
  for_packs_of<SLICE, T>(heads, num_rows, num_features, [&]<int VEC>(int r, int i) {
    const int64_t at = offset + r * heads.row + i;
    auto sum = *reinterpret_cast<const Pack<T, VEC>*>(stage + r * LD + i);
    if (!is_spare) {
      const auto residual = *reinterpret_cast<const Pack<T, VEC>*>(outputs.residual + at);
#pragma unroll
      for (int e = 0; e < VEC; ++e)
        sum.value[e] = narrow<T>(widen(sum.value[e]) + widen(residual.value[e]));
    }
    *reinterpret_cast<Pack<T, VEC>*>(outputs.sum + at) = sum;
  });
}

template <class S, class T = typename S::T, class A = typename S::A>
__global__ void __launch_bounds__(S::kThreads, S::kMinBlocks)
    forward_kernel(typename S::Inputs in, CausalAttentionOutputs<T> outputs, int copy_bytes,
                   int tiles_per_sequence) {
  using M = typename S::Math;
  constexpr int WIDTH = S::kWidth;
  constexpr int kRows = S::kRows, kKeys = S::kKeys, kLd = S::kLd, kThreads = S::kThreads;
  T* const q_tile = reinterpret_cast<T*>(smem_raw);
  T* const k_tile = q_tile + kRows * kLd;
  T* const v_tile = k_tile + kKeys * kLd;
  const CausalAttentionSizes& size = in.size;
  const Heads heads{size.num_heads * size.head_size, static_cast<int>(size.head_size), copy_bytes};
  Segment segment(size, in.cu_seqlens_q, in.cu_seqlens_k, tiles_per_sequence);
  segment.order_queries();
  if (segment.first_tile * int64_t{kRows} >= segment.num_queries) return;

  const int shift = segment.shift();
  const int first_feature = segment.slice * S::kForwardSlice;
  const int warp_row = threadIdx.x / kWarpSize * kWarpRows;
  const T* const k = in.k + segment.k_begin * heads.row + segment.head * heads.size;
  const T* const v = in.v + segment.k_begin * heads.row + segment.head * heads.size;
  const Weighting<A> weighting(in);
  const auto load_keys = [&](T* tile, const T* from, int first, int end) {
    load_tile<kKeys, WIDTH, kLd, kThreads>(tile, from + first * heads.row, end - first, heads);
  };

  for (int64_t q0 = segment.first_tile * int64_t{kRows}; q0 < segment.num_queries;
       q0 += segment.tile_step * int64_t{kRows}) {
    const QueryTile tile(segment, size.num_heads, q0, kRows, warp_row);
    OwnRows<M, WIDTH, kLd, 128> q(q_tile + warp_row * kLd);
    Sums<A> sums[S::kForwardSlice / 8];
    A maximum[2] = {-kInfinity<A>, -kInfinity<A>}, sum[2] = {};
    if (tile.num_keys > 0) {
      clear_padding<WIDTH, kLd, kThreads>(q_tile, kRows + 2 * kKeys, heads.size);
      const int64_t offset = (segment.q_begin + q0) * heads.row + segment.head * heads.size;
      load_tile<kRows, WIDTH, kLd, kThreads>(q_tile, in.q + offset, tile.num_rows, heads);
      load_keys(k_tile, k, 0, tile.num_keys);
    }
    // Where the factor is negative, the largest product is not the largest score.
    const bool scale_first = S::kBiased || weighting.factor <= 0;
    const A factor = scale_first ? A(1) : weighting.factor;
    for (int k0 = 0; k0 < tile.num_keys; k0 += kKeys) {
      Sums<A> scores[kKeys / 8];
      wait_for_copies();
      __syncthreads();  // the keys are there, and no warp reads the last values any more
      load_keys(v_tile, v, k0, tile.num_keys);
      if (k0 == 0) q.fetch();
      if (k0 < tile.warp_keys) {
        multiply_rows<M, WIDTH, kLd, kKeys>(scores, q, k_tile);
        if constexpr (S::kBiased)
          add_bias<false, kKeys>(scores, in.bias, segment, size.scale, tile.first_query, k0);
        else if (scale_first)
          scale_scores<kKeys>(scores, weighting.factor);
        const int last_seen = shift + tile.first_query - k0;  // by the warp's first query
        if (kKeys > last_seen + 1) mask_scores<kKeys>(scores, last_seen + lane_row());
        online_softmax<M, kKeys, S::kForwardSlice>(scores, factor, maximum, sum, sums);
        if (weighting.drops) drop_weights<kKeys>(scores, weighting.dropout, tile.entry, k0);
      }
      wait_for_copies();
      __syncthreads();  // the values are there, and no warp reads the keys any more
      if (k0 + kKeys < tile.num_keys) load_keys(k_tile, k, k0 + kKeys, tile.num_keys);
      if (k0 < tile.warp_keys)
        add_weighted_rows<M, S::kForwardSlice, kLd, kKeys>(sums, scores, v_tile + first_feature);
    }

    finish_rows(segment, tile, maximum, factor, weighting.kept_scale, sum, outputs.lse);
    if (tile.warp_rows > 0) {
      const int64_t offset = (segment.q_begin + tile.first_query) * heads.row +
                             segment.head * heads.size + first_feature;
      const int num_features = min(S::kForwardSlice, heads.size - first_feature);
      T* const stage = q_tile + warp_row * kLd;
      store_sums<S::kForwardSlice, kLd>(sums, sum, stage, outputs.out + offset, tile.warp_rows,
                                        num_features, heads);
      if (outputs.sum != nullptr)
        add_residual<S::kForwardSlice, kLd>(outputs, offset, stage, tile.warp_rows, num_features,
                                            heads, segment.is_spare);
    }
    __syncthreads();  // the next tile's queries go where this one's output was
  }
}

}  // namespace attention

template <class T, bool kTf32>
cudaError_t CausalAttentionKernels<T, kTf32>::forward(const CausalAttentionWithBias<T>& in,
                                                      const CausalAttentionOutputs<T>& outputs,
                                                      cudaStream_t stream) {
  using M = attention::Arithmetic<T, kTf32>;
  const int copy_bytes = attention::bytes_per_copy<T>(in.size.head_size, in.q, in.k, in.v,
                                                      outputs.out, outputs.residual, outputs.sum);
  return attention::with_tiles_for<M>(in, [&]<class S>() {
    return attention::launch_tiles("causal_attention", attention::forward_kernel<S>, in.size,
                                   in.size.max_seqlen_q, S::kRows, S::kForwardSlice, S::kThreads,
                                   S::kForwardBytes, stream, in, outputs, copy_bytes);
  });
}

}  // namespace ssept::cuda
