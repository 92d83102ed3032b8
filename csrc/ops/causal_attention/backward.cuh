// The backward kernels of `causal_attention`. One sums the gradient of a tile of queries over keys,
// the other those of a tile of keys and values over queries, each in a fixed order: the price of
// gradients that repeat bit by bit is to compute the scores twice.
#pragma once
#include "ops/causal_attention/projection_bias.cuh"
#include "ops/causal_attention/relative_bias.cuh"

namespace ssept::cuda {
namespace attention {

// delta of a lane's two queries: the sums of grad_out · out. And the logarithm of what their
// weights are divided by.
template <int LD, class T, class A>
__device__ __forceinline__ void load_row_numbers(const QueryTile& tile, const T* grad_tile,
                                                 const T* out, const A* lse, const Heads& heads,
                                                 A (&delta)[2], A (&log2_sum)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int tile_row = lane_row() + 8 * r;
    const bool exists = tile_row < tile.warp_rows;
    A sum = 0;
    if (exists)
      for (int i = lane_index() % 4; i < heads.size; i += 4)
        sum += widen(grad_tile[tile_row * LD + i]) * widen(out[tile_row * heads.row + i]);
    delta[r] = row_sum(sum);
    const A row_lse = exists ? lse[tile.entry[r]] : kInfinity<A>;
    // Weights of a row that sees no key, or does not exist, are 2^-infinity.
    log2_sum[r] = row_lse == -kInfinity<A> ? kInfinity<A> : row_lse * static_cast<A>(kLog2E);
  }
}

// From products of queries and keys, and of the output's gradient and values, to the gradient of
// the scores. The warp's first query sees keys up to last_key.
template <class M, int COLUMNS, class A>
__device__ __forceinline__ void query_score_gradients(Sums<A> (&scores)[COLUMNS / 8],
                                                      const Sums<A> (&grad_weights)[COLUMNS / 8],
                                                      const Weighting<A>& weighting,
                                                      const A (&log2_sum)[2], const A (&delta)[2],
                                                      const int64_t (&entry)[2], int first_key,
                                                      int last_key) {
  const bool on_diagonal = first_key + COLUMNS > last_key + 1;
#pragma unroll
  for (int j = 0; j < COLUMNS / 8; ++j) {
    const unsigned kept =
        weighting.drops ? kept_by_rows(weighting.dropout, entry, first_key + j * 8) : 15;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      A& score = scores[j].x[e];
      A weight = M::exp2(score * weighting.factor - log2_sum[e / 2]);
      if (on_diagonal &&
          first_key + j * 8 + lane_column() + e % 2 > last_key + lane_row() + e / 2 * 8)
        weight = 0;
      const A grad_kept = kept >> e & 1 ? grad_weights[j].x[e] * weighting.kept_scale : A(0);
      score = weight * (grad_kept - delta[e / 2]);
    }
  }
}

// The gradient of the queries, or that of the relative bias.
template <class S, bool OF_BIAS, class T = typename S::T, class A = typename S::A>
__global__ void __launch_bounds__(S::kThreads, S::kMinBlocks)
    backward_queries_kernel(typename S::Inputs in, CausalAttentionGradients<T> g, int copy_bytes,
                            int tiles_per_sequence) {
  using M = typename S::Math;
  constexpr int WIDTH = S::kWidth;
  constexpr int kRows = S::kRows, kKeys = S::kKeys, kLd = S::kLd, kThreads = S::kThreads;
  T* const q_tile = reinterpret_cast<T*>(smem_raw);
  T* const grad_tile = q_tile + kRows * kLd;
  T* const k_tile = grad_tile + kRows * kLd;
  T* const v_tile = k_tile + kKeys * kLd;
  A* const score_tile = reinterpret_cast<A*>(S::kScoresInKeys ? k_tile : v_tile + kKeys * kLd);
  const CausalAttentionSizes& size = in.size;
  const Heads heads{size.num_heads * size.head_size, static_cast<int>(size.head_size), copy_bytes};
  Segment segment(size, in.cu_seqlens_q, in.cu_seqlens_k, tiles_per_sequence);
  segment.order_queries();
  const int first_feature = segment.slice * S::kQueriesSlice;
  const int num_features = min(S::kQueriesSlice, heads.size - first_feature);
  if (segment.first_tile * int64_t{kRows} >= segment.num_queries) return;

  const int shift = segment.shift();
  const int warp_row = threadIdx.x / kWarpSize * kWarpRows;
  const T* const k = in.k + segment.k_begin * heads.row + segment.head * heads.size;
  const T* const v = in.v + segment.k_begin * heads.row + segment.head * heads.size;
  const Weighting<A> weighting(in, S::kBiased);
  const auto load_keys = [&](T* tile, const T* from, int first, int end) {
    load_tile<kKeys, WIDTH, kLd, kThreads>(tile, from + first * heads.row, end - first, heads);
  };

  for (int64_t q0 = segment.first_tile * int64_t{kRows}; q0 < segment.num_queries;
       q0 += segment.tile_step * int64_t{kRows}) {
    const QueryTile tile(segment, size.num_heads, q0, kRows, warp_row);
    const int64_t warp_offset = (segment.q_begin + tile.first_query) * heads.row +
                                segment.head * heads.size;  // of its first query

    OwnRows<M, WIDTH, kLd, 64> q(q_tile + warp_row * kLd), grad(grad_tile + warp_row * kLd);
    Sums<A> sums[S::kQueriesSlice / 8];
    BlockBiasSums<S> bias_sums;
    if constexpr (OF_BIAS) bias_sums.add_to(g.bias_partial, in.bias, segment);
    A log2_sum[2], row_delta[2];
    if (tile.num_keys > 0) {
      clear_padding<WIDTH, kLd, kThreads>(q_tile, 2 * kRows + 2 * kKeys, heads.size);
      const int64_t offset = (segment.q_begin + q0) * heads.row + segment.head * heads.size;
      load_tile<kRows, WIDTH, kLd, kThreads>(q_tile, in.q + offset, tile.num_rows, heads);
      load_tile<kRows, WIDTH, kLd, kThreads>(grad_tile, g.grad_out + offset, tile.num_rows, heads);
      load_keys(v_tile, v, 0, tile.num_keys);
    }
    for (int k0 = 0; k0 < tile.num_keys; k0 += kKeys) {
      Sums<A> scores[kKeys / 8], grad_weights[kKeys / 8];
      wait_for_copies();
      __syncthreads();  // the values are there, and no warp reads the last keys any more
      if (OF_BIAS && S::kScoresInKeys)
        clear_padding<WIDTH, kLd, kThreads>(k_tile, kKeys, heads.size);
      load_keys(k_tile, k, k0, tile.num_keys);
      if (k0 == 0) {
        q.fetch();
        grad.fetch();
        load_row_numbers<kLd>(tile, grad_tile + warp_row * kLd, g.out + warp_offset, g.lse, heads,
                              row_delta, log2_sum);
#pragma unroll
        for (int r = 0; r < 2; ++r)
          if (!OF_BIAS && segment.slice == 0 && lane_column() == 0 &&
              lane_row() + 8 * r < tile.warp_rows)
            g.delta[tile.entry[r]] = row_delta[r];
      }
      if (k0 < tile.warp_keys) multiply_rows<M, WIDTH, kLd, kKeys>(grad_weights, grad, v_tile);
      wait_for_copies();
      __syncthreads();  // the keys are there, and no warp reads the values any more
      if (k0 + kKeys < tile.num_keys) load_keys(v_tile, v, k0 + kKeys, tile.num_keys);
      if (k0 < tile.warp_keys) {
        multiply_rows<M, WIDTH, kLd, kKeys>(scores, q, k_tile);
        if constexpr (S::kBiased)
          add_bias<false, kKeys>(scores, in.bias, segment, size.scale, tile.first_query, k0);
        query_score_gradients<M, kKeys>(scores, grad_weights, weighting, log2_sum, row_delta,
                                        tile.entry, k0, shift + tile.first_query);
        if constexpr (!OF_BIAS)
          add_weighted_rows<M, S::kQueriesSlice, kLd, kKeys>(sums, scores, k_tile + first_feature);
      }
      if constexpr (OF_BIAS) {
        if constexpr (S::kScoresInKeys) __syncthreads();  // no warp reads the keys any more
        write_scores<kKeys, S::kScoreLd>(score_tile + warp_row * S::kScoreLd, scores,
                                         k0 < tile.warp_keys ? tile.warp_rows : 0,
                                         shift + tile.first_query - k0 + 1);
        __syncthreads();
        bias_sums.add(score_tile, in.bias, segment, static_cast<int>(q0), tile.num_rows, k0);
      }
    }
    if constexpr (OF_BIAS) {
      bias_sums.finish(in.bias);
      continue;
    }
    const A scale[2] = {static_cast<A>(size.scale), static_cast<A>(size.scale)};
    if (tile.warp_rows > 0) {
      T* const stage = q_tile + warp_row * kLd;
      const int64_t to = warp_offset + first_feature;
      store_sums<S::kQueriesSlice, kLd>(sums, scale, stage, g.grad_q + to, tile.warp_rows,
                                        num_features, heads);
      if (g.grad_residual != nullptr)
        for_packs_of<S::kQueriesSlice, T>(
            heads, tile.warp_rows, num_features, [&]<int VEC>(int r, int i) {
              using P = Pack<T, VEC>;
              const int64_t at = to + r * heads.row + i;
              *reinterpret_cast<P*>(g.grad_residual + at) =
                  segment.is_spare ? P{} : *reinterpret_cast<const P*>(g.grad_out + at);
            });
    }
    __syncthreads();  // the next tile's queries go where this one's gradient was
  }
}

// A tile of keys, from key k0 of its segment on, and one warp's part of it.
struct KeyTile {
  int num_rows, first_query;  // first_query: the first that sees the tile's first key
  int first_key, warp_rows;   // of the warp

  __device__ __forceinline__ KeyTile(const Segment& segment, int64_t k0, int max_rows, int warp_row)
      : num_rows(static_cast<int>(min(int64_t{max_rows}, segment.num_keys - k0))),
        first_query(max(0, static_cast<int>(k0) - segment.shift())),
        first_key(static_cast<int>(k0) + warp_row),
        warp_rows(max(0, min(kWarpRows, num_rows - warp_row))) {}
};

// Copies lse and delta of a tile of queries from `first` on. Weights of queries behind the last are
// 2^-infinity.
template <class Shared, class A>
__device__ __forceinline__ void load_query_numbers(const Shared& shared, const A* lse,
                                                   const A* delta, const Segment& segment,
                                                   int64_t num_heads, int first) {
  const int i = threadIdx.x, query = first + i;
  if (i >= Shared::kQueries) return;
  if (query < segment.num_queries) {
    const int64_t entry = (segment.q_begin + query) * num_heads + segment.head;
    copy_async<1>(shared.lse + i, lse + entry);
    copy_async<1>(shared.delta + i, delta + entry);
  } else {
    shared.lse[i] = kInfinity<A>;
    shared.delta[i] = 0;
  }
}

// As query_score_gradients, where rows are keys and columns are queries, with the weights after
// dropout in place of the scores. first_entry is the first query's, which sees the keys up to
// last_seen, counted from first_key, the warp's first.
template <class M, int COLUMNS, class A>
__device__ __forceinline__ void key_score_gradients(Sums<A> (&scores)[COLUMNS / 8],
                                                    Sums<A> (&grad_weights)[COLUMNS / 8],
                                                    const Weighting<A>& weighting, const A* lse,
                                                    const A* delta, int64_t first_entry,
                                                    int64_t num_heads, int first_key,
                                                    int last_seen) {
  const bool on_diagonal = kWarpRows > last_seen + 1;
#pragma unroll
  for (int j = 0; j < COLUMNS / 8; ++j) {
    const unsigned kept = weighting.drops
                              ? kept_by_columns(weighting.dropout, first_entry + j * 8 * num_heads,
                                                num_heads, first_key)
                              : 15;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int column = j * 8 + lane_column() + e % 2;
      A weight = M::exp2(scores[j].x[e] * weighting.factor - lse[column] * static_cast<A>(kLog2E));
      if (on_diagonal && lane_row() + e / 2 * 8 > last_seen + column) weight = 0;
      const bool keeps = kept >> e & 1;
      const A grad_kept = keeps ? grad_weights[j].x[e] * weighting.kept_scale : A(0);
      scores[j].x[e] = keeps ? weight : A(0);
      grad_weights[j].x[e] = weight * (grad_kept - delta[column]);
    }
  }
}

// The shared memory of backward_keys_kernel.
template <class S, class T = typename S::T, class A = typename S::A>
struct KeysShared {
  static constexpr int kQueries = S::kQueries;
  T* const k = reinterpret_cast<T*>(smem_raw);
  T* const v = k + S::kRows * S::kLd;
  T* const q = v + S::kRows * S::kLd;
  T* const grads = q + S::kQueries * S::kLd;
  T* const next_grads = grads + (S::kGradTiles - 1) * S::kQueries * S::kLd;
  A* const lse = reinterpret_cast<A*>(grads + S::kGradTiles * S::kQueries * S::kLd);
  A* const delta = lse + S::kQueries;
};

// As FlashAttention-2's backward, but for the gradient of the queries. Of the scores, rows are keys
// and columns are queries.
template <class S, class T = typename S::T, class A = typename S::A>
__global__ void __launch_bounds__(S::kThreads, S::kMinBlocks)
    backward_keys_kernel(typename S::Inputs in, CausalAttentionGradients<T> g, int copy_bytes,
                         int tiles_per_sequence) {
  using M = typename S::Math;
  constexpr int WIDTH = S::kWidth;
  constexpr int kRows = S::kRows, kQueries = S::kQueries, kLd = S::kLd, kThreads = S::kThreads;
  constexpr int kSlice = S::kKeysSlice;
  const KeysShared<S> shared;
  const CausalAttentionSizes& size = in.size;
  const Heads heads{size.num_heads * size.head_size, static_cast<int>(size.head_size), copy_bytes};
  Segment segment(size, in.cu_seqlens_q, in.cu_seqlens_k, tiles_per_sequence);
  if (segment.is_spare) segment.num_queries = 0;
  if (segment.first_tile * int64_t{kRows} >= segment.num_keys) return;

  const int first_feature = segment.slice * kSlice;
  const int warp_row = threadIdx.x / kWarpSize * kWarpRows;
  const int64_t head_offset = segment.q_begin * heads.row + segment.head * heads.size;
  const Weighting<A> weighting(in, S::kBiased);
  const auto load_queries = [&](T* tile, const T* from, int first) {
    load_tile<kQueries, WIDTH, kLd, kThreads>(tile, from + head_offset + first * heads.row,
                                              segment.num_queries - first, heads);
  };
  for (int64_t k0 = segment.first_tile * int64_t{kRows}; k0 < segment.num_keys;
       k0 += segment.tile_step * int64_t{kRows}) {
    const KeyTile tile(segment, k0, kRows, warp_row);
    const int64_t offset = (segment.k_begin + k0) * heads.row + segment.head * heads.size;
    OwnRows<M, WIDTH, kLd, 64> k(shared.k + warp_row * kLd), v(shared.v + warp_row * kLd);
    Sums<A> k_sums[kSlice / 8], v_sums[kSlice / 8];
    T *grad_tile = shared.grads, *next_grad_tile = shared.next_grads;
    if (tile.first_query < segment.num_queries) {
      clear_padding<WIDTH, kLd, kThreads>(shared.k, 2 * kRows + (1 + S::kGradTiles) * kQueries,
                                          heads.size);
      load_tile<kRows, WIDTH, kLd, kThreads>(shared.k, in.k + offset, tile.num_rows, heads);
      load_tile<kRows, WIDTH, kLd, kThreads>(shared.v, in.v + offset, tile.num_rows, heads);
      load_queries(grad_tile, g.grad_out, tile.first_query);
    }
    for (int q0 = tile.first_query; q0 < segment.num_queries; q0 += kQueries) {
      Sums<A> weights[kQueries / 8], grad_scores[kQueries / 8];
      const bool goes_on = q0 + kQueries < segment.num_queries;
      const int last_seen = segment.shift() + q0 - tile.first_key;  // by the tile's first query
      // Whether the tile's last query sees the warp's first key.
      const bool meets =
          tile.warp_rows > 0 && last_seen + min(kQueries, segment.num_queries - q0) > 0;
      wait_for_copies();
      __syncthreads();  // the gradients are there, and no warp reads the last queries any more
      load_queries(shared.q, in.q, q0);
      load_query_numbers(shared, g.lse, g.delta, segment, size.num_heads, q0);
      if (q0 == tile.first_query) k.fetch(), v.fetch();
      if (meets) multiply_rows<M, WIDTH, kLd, kQueries>(grad_scores, v, grad_tile);
      wait_for_copies();
      __syncthreads();  // the queries are there
      if (S::kGradTiles == 2 && goes_on) load_queries(next_grad_tile, g.grad_out, q0 + kQueries);
      if (meets) {
        multiply_rows<M, WIDTH, kLd, kQueries>(weights, k, shared.q);
        if constexpr (S::kBiased)
          add_bias<true, kQueries>(weights, in.bias, segment, size.scale, tile.first_key, q0);
        key_score_gradients<M, kQueries>(weights, grad_scores, weighting, shared.lse, shared.delta,
                                         (segment.q_begin + q0) * size.num_heads + segment.head,
                                         size.num_heads, tile.first_key, last_seen);
        add_weighted_rows<M, kSlice, kLd, kQueries>(v_sums, weights, grad_tile + first_feature);
      }
      if constexpr (S::kGradTiles == 1) {
        __syncthreads();  // no warp reads the gradients any more
        if (goes_on) load_queries(grad_tile, g.grad_out, q0 + kQueries);
      }
      if (meets)
        add_weighted_rows<M, kSlice, kLd, kQueries>(k_sums, grad_scores, shared.q + first_feature);
      T* const read = grad_tile;
      grad_tile = next_grad_tile;
      next_grad_tile = read;
    }
    const auto store = [&](const Sums<A>(&sums)[kSlice / 8], A scale, T* stage, T* to) {
      if (tile.warp_rows == 0) return;
      const Heads gradients{g.grad_kv_row, heads.size, heads.copy_bytes};
      const int64_t at = (segment.k_begin + tile.first_key) * gradients.row +
                         segment.head * heads.size + first_feature;
      store_sums<kSlice, kLd>(sums, {scale, scale}, stage + warp_row * kLd, to + at, tile.warp_rows,
                              min(kSlice, heads.size - first_feature), gradients);
    };
    store(k_sums, static_cast<A>(size.scale), shared.k, g.grad_k);
    store(v_sums, weighting.kept_scale, shared.v, g.grad_v);
    __syncthreads();  // the next tile's keys and values go where this one's gradients were
  }
}

}  // namespace attention

template <class T, bool kTf32>
int64_t CausalAttentionKernels<T, kTf32>::bias_rows(const CausalAttentionSizes& size) {
  int64_t rows = 0;
  attention::with_tiles<attention::Arithmetic<T, kTf32>, true>(size.head_size, [&]<class S>() {
    rows = attention::blocks_of_tiles(size, size.max_seqlen_q, S::kRows);
    return cudaSuccess;
  });
  return rows;
}

template <class T, bool kTf32>
cudaError_t CausalAttentionKernels<T, kTf32>::backward(const CausalAttentionWithBias<T>& in,
                                                       const CausalAttentionGradients<T>& g,
                                                       cudaStream_t stream) {
  using M = attention::Arithmetic<T, kTf32>;
  const CausalAttentionSizes& size = in.size;
  const int copy_bytes = attention::bytes_per_copy<T>(
      size.head_size, in.q, in.k, in.v, g.grad_out, g.grad_q, g.grad_k, g.grad_v, g.grad_residual);
  const cudaError_t error = attention::with_tiles_for<M>(in, [&]<class S>() {
    const char* op = "causal_attention_backward";
    if constexpr (S::kBiased) {
      const cudaError_t error = attention::launch_tiles(
          op, attention::backward_queries_kernel<S, true>, size, size.max_seqlen_q, S::kRows,
          S::kWidth, S::kThreads, S::kBackwardBiasBytes, stream, in, g, copy_bytes);
      if (error != cudaSuccess) return error;
    }
    const cudaError_t error = attention::launch_tiles(
        op, attention::backward_queries_kernel<S, false>, size, size.max_seqlen_q, S::kRows,
        S::kQueriesSlice, S::kThreads, S::kBackwardQueriesBytes, stream, in, g, copy_bytes);
    if (error != cudaSuccess) return error;
    return attention::launch_tiles(op, attention::backward_keys_kernel<S>, size, size.max_seqlen_k,
                                   S::kRows, S::kKeysSlice, S::kThreads, S::kBackwardKeysBytes,
                                   stream, in, g, copy_bytes);
  });
  if (error != cudaSuccess || !has_bias(in.bias)) return error;
  return attention::launch_relative_bias(in, g, bias_rows(size), stream);
}

}  // namespace ssept::cuda
