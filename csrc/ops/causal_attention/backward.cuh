// The backward kernels of `causal_attention`. One sums the gradient of a tile of queries over keys,
// the other those of a tile of keys and values over queries, each in a fixed order: the price of
// gradients that repeat bit by bit is to compute the scores twice.
#pragma once
#include "ops/causal_attention/tiles.cuh"

namespace ssept::cuda {
namespace attention {

template <class M, int WIDTH, class T = typename M::Element, class A = Accumulator<T>>
__global__ void __launch_bounds__(Tiles<M, WIDTH>::kThreads, Tiles<M, WIDTH>::kMinBlocks)
    backward_queries_kernel(CausalAttention<T> in, const T* grad_out, const T* out, const A* lse,
                            A* delta, T* grad_q, int copy_bytes, int tiles_per_sequence) {
  using S = Tiles<M, WIDTH>;
  constexpr int kRows = S::kRows, kKeys = S::kKeys, kLd = S::kLd, kThreads = S::kThreads;
  T* const q_tile = reinterpret_cast<T*>(smem_raw);
  T* const grad_tile = q_tile + kRows * kLd;
  T* const k_tile = grad_tile + kRows * kLd;
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
  const int first_feature = segment.slice * S::kQueriesSlice;
  const int warp_row = threadIdx.x / kWarpSize * kWarpRows;
  const T* const k = in.k + segment.k_begin * row + segment.head * head_size;
  const T* const v = in.v + segment.k_begin * row + segment.head * head_size;
  const A factor = static_cast<A>(size.scale * kLog2E);
  const A kept_scale = in.seed == nullptr ? A(1) : static_cast<A>(in.dropout.scale);
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
    const int64_t first_entry =
        (segment.q_begin + first_query + lane_row()) * size.num_heads + segment.head;
    const int64_t entry[2] = {first_entry, first_entry + 8 * size.num_heads};
    const int64_t warp_offset =
        (segment.q_begin + first_query) * row + segment.head * head_size;  // of its first query

    OwnRows<M, WIDTH, kLd, 64> q(q_tile + warp_row * kLd), grad(grad_tile + warp_row * kLd);
    Sums<A> sums[S::kQueriesSlice / 8];
    A log2_sum[2], row_delta[2];
    if (num_keys > 0) {
      clear_padding<WIDTH, kLd, kThreads>(q_tile, 2 * kRows + 2 * kKeys, head_size);
      const int64_t offset = (segment.q_begin + q0) * row + segment.head * head_size;
      load_tile<kRows, WIDTH, kLd, kThreads>(q_tile, in.q + offset, row, num_rows, head_size,
                                             copy_bytes);
      load_tile<kRows, WIDTH, kLd, kThreads>(grad_tile, grad_out + offset, row, num_rows, head_size,
                                             copy_bytes);
      load_keys(v_tile, v, 0, num_keys);
    }
    for (int k0 = 0; k0 < num_keys; k0 += kKeys) {
      Sums<A> weights[kKeys / 8], grad_weights[kKeys / 8];
      wait_for_copies();
      __syncthreads();  // the values are there, and no warp reads the last keys any more
      load_keys(k_tile, k, k0, num_keys);
      if (k0 == 0) {
        q.fetch();
        grad.fetch();
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const bool exists = lane_row() + 8 * r < warp_rows;
          const int64_t first = warp_offset + (lane_row() + 8 * r) * row;
          A sum = 0;
          if (exists)
            for (int i = lane_index() % 4; i < head_size; i += 4)
              sum += widen(grad_tile[(warp_row + lane_row() + 8 * r) * kLd + i]) *
                     widen(out[first + i]);
          row_delta[r] = row_sum(sum);
          const A row_lse = exists ? lse[entry[r]] : kInfinity<A>;
          // Weights of a row that sees no key, or does not exist, are 2^-infinity.
          log2_sum[r] = row_lse == -kInfinity<A> ? kInfinity<A> : row_lse * static_cast<A>(kLog2E);
          if (exists && segment.slice == 0 && lane_column() == 0) delta[entry[r]] = row_delta[r];
        }
      }
      if (k0 < warp_keys) multiply_rows<M, WIDTH, kLd, kKeys>(grad_weights, grad, v_tile);
      wait_for_copies();
      __syncthreads();  // the keys are there, and no warp reads the values any more
      if (k0 + kKeys < num_keys) load_keys(v_tile, v, k0 + kKeys, num_keys);
      if (k0 < warp_keys) {
        multiply_rows<M, WIDTH, kLd, kKeys>(weights, q, k_tile);
        const bool on_diagonal = k0 + kKeys > shift + first_query + 1;
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j) {
          const unsigned kept = in.seed == nullptr ? 15 : kept_by_rows(dropout, entry, k0 + j * 8);
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            A& weight = weights[j].x[e];
            weight = M::exp2(weight * factor - log2_sum[e / 2]);
            if (on_diagonal &&
                k0 + j * 8 + lane_column() + e % 2 > shift + first_query + lane_row() + e / 2 * 8)
              weight = 0;
            const A grad_kept = kept >> e & 1 ? grad_weights[j].x[e] * kept_scale : A(0);
            weight *= grad_kept - row_delta[e / 2];
          }
        }
        add_weighted_rows<M, S::kQueriesSlice, kLd, kKeys>(sums, weights, k_tile + first_feature);
      }
    }
    const A scale[2] = {static_cast<A>(size.scale), static_cast<A>(size.scale)};
    if (warp_rows > 0)
      store_sums<S::kQueriesSlice, kLd>(
          sums, scale, q_tile + warp_row * kLd, grad_q + warp_offset + first_feature, row,
          warp_rows, min(S::kQueriesSlice, head_size - first_feature), copy_bytes);
    __syncthreads();  // the next tile's queries go where this one's gradient was
  }
}

// As FlashAttention-2's backward, but for the gradient of the queries. Of the scores, rows are keys
// and columns are queries.
template <class M, int WIDTH, class T = typename M::Element, class A = Accumulator<T>>
__global__ void __launch_bounds__(Tiles<M, WIDTH>::kThreads, Tiles<M, WIDTH>::kMinBlocks)
    backward_keys_kernel(CausalAttention<T> in, const T* grad_out, const A* lse, const A* delta,
                         T* grad_k, T* grad_v, int copy_bytes, int tiles_per_sequence) {
  using S = Tiles<M, WIDTH>;
  constexpr int kRows = S::kRows, kQueries = S::kQueries, kLd = S::kLd, kThreads = S::kThreads;
  constexpr int kSlice = S::kKeysSlice;
  T* const k_tile = reinterpret_cast<T*>(smem_raw);
  T* const v_tile = k_tile + kRows * kLd;
  T* const q_tile = v_tile + kRows * kLd;
  T* const grad_tiles = q_tile + kQueries * kLd;
  A* const lse_tile = reinterpret_cast<A*>(grad_tiles + S::kGradTiles * kQueries * kLd);
  A* const delta_tile = lse_tile + kQueries;
  const CausalAttentionSizes& size = in.size;
  const int head_size = static_cast<int>(size.head_size);
  const int64_t row = size.num_heads * size.head_size;
  Segment segment(size, in.cu_seqlens_q, in.cu_seqlens_k, tiles_per_sequence);
  if (segment.is_spare) segment.num_queries = 0;
  if (segment.first_tile * int64_t{kRows} >= segment.num_keys) return;

  const int shift = segment.shift();
  const int first_feature = segment.slice * kSlice;
  const int warp_row = threadIdx.x / kWarpSize * kWarpRows;
  const int64_t head_offset = segment.q_begin * row + segment.head * head_size;
  const A factor = static_cast<A>(size.scale * kLog2E);
  const A kept_scale = in.seed == nullptr ? A(1) : static_cast<A>(in.dropout.scale);
  const DropoutMask dropout(in.seed, in.dropout);
  const auto load_queries = [&](T* tile, const T* from, int first) {
    load_tile<kQueries, WIDTH, kLd, kThreads>(tile, from + head_offset + first * row, row,
                                              segment.num_queries - first, head_size, copy_bytes);
  };
  const auto load_numbers = [&](A* tile, const A* from, int first, A missing) {
    if (threadIdx.x >= kQueries) return;
    const int query = first + threadIdx.x;
    if (query < segment.num_queries)
      copy_async<1>(tile + threadIdx.x,
                    from + (segment.q_begin + query) * size.num_heads + segment.head);
    else
      tile[threadIdx.x] = missing;
  };

  for (int64_t k0 = segment.first_tile * int64_t{kRows}; k0 < segment.num_keys;
       k0 += segment.tile_step * int64_t{kRows}) {
    const int num_rows = static_cast<int>(min(int64_t{kRows}, segment.num_keys - k0));
    const int first_key = static_cast<int>(k0) + warp_row;
    const int warp_rows = max(0, min(kWarpRows, num_rows - warp_row));
    const int first_query = max(0, static_cast<int>(k0) - shift);
    const int64_t tile_offset = (segment.k_begin + k0) * row + segment.head * head_size;

    OwnRows<M, WIDTH, kLd, 64> k(k_tile + warp_row * kLd), v(v_tile + warp_row * kLd);
    Sums<A> k_sums[kSlice / 8], v_sums[kSlice / 8];
    T* grad_tile = grad_tiles;
    T* next_grad_tile = grad_tiles + (S::kGradTiles - 1) * kQueries * kLd;
    if (first_query < segment.num_queries) {
      clear_padding<WIDTH, kLd, kThreads>(k_tile, 2 * kRows + (1 + S::kGradTiles) * kQueries,
                                          head_size);
      load_tile<kRows, WIDTH, kLd, kThreads>(k_tile, in.k + tile_offset, row, num_rows, head_size,
                                             copy_bytes);
      load_tile<kRows, WIDTH, kLd, kThreads>(v_tile, in.v + tile_offset, row, num_rows, head_size,
                                             copy_bytes);
      load_queries(grad_tile, grad_out, first_query);
    }
    for (int q0 = first_query; q0 < segment.num_queries; q0 += kQueries) {
      Sums<A> weights[kQueries / 8], grad_weights[kQueries / 8];
      // Whether the tile's last query sees the warp's first key.
      const bool meets =
          warp_rows > 0 && shift + min(q0 + kQueries, segment.num_queries) > first_key;
      wait_for_copies();
      __syncthreads();  // the gradients are there, and no warp reads the last queries any more
      load_queries(q_tile, in.q, q0);
      load_numbers(lse_tile, lse, q0, kInfinity<A>);  // weights of 2^-infinity behind the last
      load_numbers(delta_tile, delta, q0, A(0));
      if (q0 == first_query) {
        k.fetch();
        v.fetch();
      }
      if (meets) multiply_rows<M, WIDTH, kLd, kQueries>(grad_weights, v, grad_tile);
      wait_for_copies();
      __syncthreads();  // the queries are there
      const bool goes_on = q0 + kQueries < segment.num_queries;
      if (S::kGradTiles == 2 && goes_on) load_queries(next_grad_tile, grad_out, q0 + kQueries);
      if (meets) {
        multiply_rows<M, WIDTH, kLd, kQueries>(weights, k, q_tile);
        const bool on_diagonal = first_key + kWarpRows > shift + q0 + 1;
#pragma unroll
        for (int j = 0; j < kQueries / 8; ++j) {
          const int64_t first_entry =
              (segment.q_begin + q0 + j * 8) * size.num_heads + segment.head;
          const unsigned kept =
              in.seed == nullptr ? 15
                                 : kept_by_columns(dropout, first_entry, size.num_heads, first_key);
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int column = j * 8 + lane_column() + e % 2;
            A weight =
                M::exp2(weights[j].x[e] * factor - lse_tile[column] * static_cast<A>(kLog2E));
            if (on_diagonal && first_key + lane_row() + e / 2 * 8 > shift + q0 + column) weight = 0;
            const bool keeps = kept >> e & 1;
            const A grad_kept = keeps ? grad_weights[j].x[e] * kept_scale : A(0);
            weights[j].x[e] = keeps ? weight : A(0);
            grad_weights[j].x[e] = weight * (grad_kept - delta_tile[column]);
          }
        }
        add_weighted_rows<M, kSlice, kLd, kQueries>(v_sums, weights, grad_tile + first_feature);
      }
      if constexpr (S::kGradTiles == 1) {
        __syncthreads();  // no warp reads the gradients any more
        if (goes_on) load_queries(grad_tile, grad_out, q0 + kQueries);
      }
      if (meets)
        add_weighted_rows<M, kSlice, kLd, kQueries>(k_sums, grad_weights, q_tile + first_feature);
      T* const read = grad_tile;
      grad_tile = next_grad_tile;
      next_grad_tile = read;
    }
    const A k_scale[2] = {static_cast<A>(size.scale), static_cast<A>(size.scale)};
    const A v_scale[2] = {kept_scale, kept_scale};
    if (warp_rows > 0) {
      const int64_t offset = tile_offset + warp_row * row + first_feature;
      const int num_features = min(kSlice, head_size - first_feature);
      store_sums<kSlice, kLd>(k_sums, k_scale, k_tile + warp_row * kLd, grad_k + offset, row,
                              warp_rows, num_features, copy_bytes);
      store_sums<kSlice, kLd>(v_sums, v_scale, v_tile + warp_row * kLd, grad_v + offset, row,
                              warp_rows, num_features, copy_bytes);
    }
    __syncthreads();  // the next tile's keys and values go where this one's gradients were
  }
}

}  // namespace attention

template <class T, bool kTf32>
cudaError_t CausalAttentionKernels<T, kTf32>::backward(const CausalAttention<T>& in,
                                                       const T* grad_out, const T* out,
                                                       const A* lse, A* delta, T* grad_q, T* grad_k,
                                                       T* grad_v, cudaStream_t stream) {
  using M = attention::Arithmetic<T, kTf32>;
  const CausalAttentionSizes& size = in.size;
  const int copy_bytes = attention::bytes_per_copy<T>(size.head_size, in.q, in.k, in.v, grad_out,
                                                      grad_q, grad_k, grad_v);
  return attention::for_width_of<T>(size.head_size, [&]<int WIDTH>() {
    using S = attention::Tiles<M, WIDTH>;
    const char* op = "causal_attention_backward";
    const cudaError_t error = attention::launch_tiles(
        op, attention::backward_queries_kernel<M, WIDTH>, size, size.max_seqlen_q, S::kRows,
        S::kQueriesSlice, S::kThreads, S::kBackwardQueriesBytes, stream, in, grad_out, out, lse,
        delta, grad_q, copy_bytes);
    if (error != cudaSuccess) return error;
    return attention::launch_tiles(op, attention::backward_keys_kernel<M, WIDTH>, size,
                                   size.max_seqlen_k, S::kRows, S::kKeysSlice, S::kThreads,
                                   S::kBackwardKeysBytes, stream, in, grad_out, lse, delta, grad_k,
                                   grad_v, copy_bytes);
  });
}

}  // namespace ssept::cuda
