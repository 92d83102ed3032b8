// The backward of `causal_attention` on the CPU, which computes the weights again:
//
//   for each tile of keys:
//     for each tile of queries that sees one of them:
//       for each group of queries:  weights and grad_scores;  grad_q += grad_scores · k
//       for each group of keys:     grad_v += weightsᵀ · grad_out;  grad_k += grad_scoresᵀ · q
//     write grad_k and grad_v
//   write grad_q
#pragma once
#include <limits>

#include "ops/causal_attention/cpu_relative_bias.h"

namespace ssept::cpu::attention {

// Sequences up to this length have all gradients computed together; longer ones are split, for the
// memory of their queries' gradient and so that all threads have work, at the price of computing
// the scores twice.
constexpr int64_t kWholeBackward = 16 * kTile;

// Whole sequences, or chunks of keys for their gradients and chunks of queries for theirs.
template <class T>
std::vector<Unit> backward_units(const Inputs<T>& in) {
  return make_units(in, [](auto& units, const auto& x, Unit unit) {
    if (x.num_queries <= kWholeBackward) {
      units.push_back(unit);
      return;
    }
    Unit part = unit;
    part.wants_query_gradient = false;
    for (part.first_key = 0; part.first_key < x.num_keys; part.first_key = part.last_key) {
      part.last_key = std::min(part.first_key + kQueryChunk, x.num_keys);
      part.first_query = x.first_query_seeing(part.first_key);
      units.push_back(part);
    }
    part = unit;
    part.wants_key_gradient = false;
    for (part.first_query = 0; part.first_query < x.num_queries;
         part.first_query = part.last_query) {
      part.last_query = std::min(part.first_query + kQueryChunk, x.num_queries);
      part.last_key = clamp(x.visible(part.last_query - 1, 0), 0, x.num_keys);
      units.push_back(part);
    }
  });
}

template <class A>
struct BackwardTiles {
  Buffer<A> q, grad_out, k, k_transposed, v_transposed;
  Buffer<A> weights, grad_scores;  // grad_scores: at first the gradient of the weights
  Buffer<A> grad_q, grad_k, grad_v;
  Buffer<uint32_t> words;

  explicit BackwardTiles(int64_t head_size)
      : q(kTile * tile_width<A>(head_size)),
        grad_out(kTile * tile_width<A>(head_size)),
        k(kTile * tile_width<A>(head_size)),
        k_transposed(kTile * tile_width<A>(head_size)),
        v_transposed(kTile * tile_width<A>(head_size)),
        weights(kTile * kTile),
        grad_scores(kTile * kTile),
        grad_q(kWholeBackward * tile_width<A>(head_size)),
        grad_k(kTile * tile_width<A>(head_size)),
        grad_v(kTile * tile_width<A>(head_size)),
        words(kTile * kTile + kPhiloxSlack) {}
};

// Adds the rows to `sum`, if there is one.
template <class S, class T, class A>
SSEPT_INLINE void unpack_rows(const A* tile, int64_t rows, int64_t width, A scale, T* x,
                              int64_t x_row, A* sum) {
  for (int64_t r = 0; r < rows; ++r) {
    const A* row = tile + r * S::template whole_vectors<A>(width);
    for (int64_t i = 0; i < width; ++i) x[r * x_row + i] = static_cast<T>(scale * row[i]);
    for (int64_t i = 0; sum && i < width; ++i) sum[i] += scale * row[i];
  }
}

// From a row of scores and of the gradient of its weights after dropout, to the weights after
// dropout and the gradient of the scores. `keep` is what dropout multiplies each weight by.
template <class S, class A>
SSEPT_INLINE void softmax_backward_row(A* weights, A* grad_scores, const A* keep, int64_t visible,
                                       int64_t columns, A lse, A delta) {
  constexpr int64_t kLanes = S::template kLanes<A>;
  constexpr A kInfinity = std::numeric_limits<A>::infinity();
  if (lse == -kInfinity) lse = kInfinity;  // all scores are -infinity, and weights 0
  for (int64_t j = 0; j < columns; j += kLanes) {
    const auto weight = exponential<S, A>(S::load(weights + j) - lse);
    S::store(grad_scores + j, weight * (S::load(grad_scores + j) * S::load(keep + j) - delta));
    S::store(weights + j, weight * S::load(keep + j));
  }
  for (int64_t j = visible; j < columns; ++j) weights[j] = grad_scores[j] = 0;
}

// A tile of a unit's queries and a tile of keys.
struct TilePair {
  int64_t first_row, rows, keys;  // first_row: the first query's, within the unit
  int64_t first_token;            // the first query's, among all tokens
  int64_t first_key;              // within the sequence
  int64_t visible;                // keys that the first query sees, maybe below 0
  bool k_finite, q_finite = false, grad_finite = false;
};

// Computes the tile's weights and the gradient of its scores, and adds to the queries' gradient and
// to that of the relative bias, if `bias_sums` is there.
template <class S, class T, class A>
SSEPT_INLINE void score_gradients(const Inputs<T>& in, const HeadOf<T>& x,
                                  const CausalAttentionGradients<T>& g, const Unit& unit,
                                  const TilePair& pair, const TileDropout& dropout,
                                  BackwardTiles<A>& tile, A* bias_sums) {
  const auto& s = in.size;
  const int64_t width = S::template whole_vectors<A>(s.head_size);
  A keep[kTile];
  TimeBuckets buckets;
  std::fill_n(keep, kTile, A(1));
  for (int64_t r0 = 0; r0 < pair.rows; r0 += S::kRows) {
    const int64_t seen = seen_by_group<S>(pair.visible, r0, pair.keys);
    if (seen == 0) continue;
    const int64_t columns = columns_for<S, A>(seen);
    multiply_rows<S, false>(seen, s.head_size, tile.q + r0 * width, width, 1,
                            tile.k_transposed.get(), kTile, tile.weights + r0 * kTile, kTile);
    multiply_rows<S, false>(seen, s.head_size, tile.grad_out + r0 * width, width, 1,
                            tile.v_transposed.get(), kTile, tile.grad_scores + r0 * kTile, kTile);
    for (int64_t r = r0; r < std::min(r0 + S::kRows, pair.rows); ++r) {
      const int64_t row_visible = clamp(pair.visible + r, 0, pair.keys);
      if (row_visible == 0) {
        std::fill_n(tile.weights + r * kTile, columns, A(0));
        std::fill_n(tile.grad_scores + r * kTile, columns, A(0));
        continue;
      }
      if (dropout.words) {
        std::fill_n(keep, kTile, static_cast<A>(in.dropout.scale));
        drop(keep, row_visible, dropout.words + r * dropout.stride, dropout.site);
      }
      const int64_t entry = (pair.first_token + r) * s.num_heads + unit.head;
      const int64_t query = unit.first_query + pair.first_row + r;
      add_bias(x, query, pair.first_key, row_visible, tile.weights + r * kTile, buckets);
      softmax_backward_row<S, A>(tile.weights + r * kTile, tile.grad_scores + r * kTile, keep,
                                 row_visible, columns, g.lse[entry], g.delta[entry]);
      if (bias_sums)
        add_bias_gradient(x, query, pair.first_key, row_visible, tile.grad_scores + r * kTile,
                          buckets, bias_sums);
    }
    if (unit.wants_query_gradient)
      add_product<S>(pair.k_finite, width, seen, tile.grad_scores + r0 * kTile, kTile, 1,
                     tile.k.get(), width, tile.grad_q + (pair.first_row + r0) * width, width);
  }
}

// Adds what the tile's queries contribute to the gradients of its keys and values.
template <class S, class A>
SSEPT_INLINE void add_key_gradients(const TilePair& pair, int64_t width, BackwardTiles<A>& tile) {
  for (int64_t j = 0; j < pair.keys; j += S::kRows) {
    // Rows before this one see none of these keys.
    const int64_t r = clamp(j + 1 - pair.visible, 0, pair.rows);
    add_product<S>(pair.grad_finite, width, pair.rows - r, tile.weights + r * kTile + j, 1, kTile,
                   tile.grad_out + r * width, width, tile.grad_v + j * width, width);
    add_product<S>(pair.q_finite, width, pair.rows - r, tile.grad_scores + r * kTile + j, 1, kTile,
                   tile.q + r * width, width, tile.grad_k + j * width, width);
  }
}

// What a unit adds to sums over units, where these are there.
template <class A>
struct UnitSums {
  A* projection_bias;  // (2, Dh): gradients of the unit's queries and values
  A* relative_bias;    // (num_positions + kTimeBuckets)
};

template <class S, class T, class A = Accumulator<T>>
SSEPT_INLINE void compute_gradients(const Inputs<T>& in, const CausalAttentionGradients<T>& g,
                                    const Unit& unit, BackwardTiles<A>& tile,
                                    const UnitSums<A>& sums) {
  const auto& s = in.size;
  const HeadOf<T> x(in, unit.sequence, unit.head);
  const int64_t width = S::template whole_vectors<A>(s.head_size);
  const int64_t head_offset = unit.head * s.head_size;
  const int64_t num_queries = unit.last_query - unit.first_query;
  if (unit.wants_query_gradient)
    std::fill_n(tile.grad_q.get(), S::whole_rows(num_queries) * width, A(0));

  for (int64_t k0 = unit.first_key; k0 < unit.last_key; k0 += kTile) {
    const int64_t keys = std::min(kTile, x.num_keys - k0);
    const T* k = x.k + k0 * x.row;
    const bool k_finite = pack_rows<S>(k, x.row, keys, s.head_size, A(1), keys, tile.k.get());
    pack_transposed<S>(k, x.row, keys, s.head_size, kTile, tile.k_transposed.get());
    pack_transposed<S>(x.v + k0 * x.row, x.row, keys, s.head_size, kTile, tile.v_transposed.get(),
                       x.v_bias);
    std::fill_n(tile.grad_k.get(), S::whole_rows(keys) * width, A(0));
    std::fill_n(tile.grad_v.get(), S::whole_rows(keys) * width, A(0));

    const int64_t first = std::max(unit.first_query, x.first_query_seeing(k0)) - unit.first_query;
    for (int64_t r0 = first / kTile * kTile; r0 < num_queries; r0 += kTile) {
      const int64_t q0 = unit.first_query + r0;
      const int64_t rows = std::min(kTile, unit.last_query - q0);
      TilePair pair{r0, rows, keys, x.query_start + q0, k0, x.visible(q0, k0), k_finite};
      const TileDropout dropout(in, pair.first_token, rows, unit.head, k0,
                                clamp(pair.visible + rows - 1, 0, keys), tile.words.get());
      pair.q_finite =
          pack_rows<S>(x.q + q0 * x.row, x.row, rows, s.head_size, static_cast<A>(s.scale),
                       S::whole_rows(rows), tile.q.get(), x.q_bias);
      pair.grad_finite =
          pack_rows<S>(g.grad_out + pair.first_token * x.row + head_offset, x.row, rows,
                       s.head_size, A(1), S::whole_rows(rows), tile.grad_out.get());
      score_gradients<S>(in, x, g, unit, pair, dropout, tile,
                         unit.wants_key_gradient ? sums.relative_bias : nullptr);
      if (unit.wants_key_gradient) add_key_gradients<S>(pair, width, tile);
    }
    if (unit.wants_key_gradient) {
      const int64_t offset = (x.key_start + k0) * g.grad_kv_row + head_offset;
      unpack_rows<S>(tile.grad_k.get(), keys, s.head_size, A(1), g.grad_k + offset, g.grad_kv_row,
                     static_cast<A*>(nullptr));
      unpack_rows<S>(tile.grad_v.get(), keys, s.head_size, A(1), g.grad_v + offset, g.grad_kv_row,
                     sums.projection_bias ? sums.projection_bias + s.head_size : nullptr);
    }
  }
  if (unit.wants_query_gradient)
    unpack_rows<S>(tile.grad_q.get(), num_queries, s.head_size, static_cast<A>(s.scale),
                   g.grad_q + (x.query_start + unit.first_query) * x.row + head_offset, x.row,
                   sums.projection_bias);
}

}  // namespace ssept::cpu::attention
