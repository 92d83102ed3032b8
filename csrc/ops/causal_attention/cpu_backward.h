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
  RowTile<A> q, grad_out;  // all queries of a unit, if there is room
  RowTile<A> k, v;
  Buffer<A> k_transposed, v_transposed;
  Buffer<A> weights, grad_scores;  // grad_scores: at first the gradient of the weights
  Buffer<A> grad_q, grad_k, grad_v, pairs;
  Buffer<uint32_t> words;
  bool q_finite = false, grad_finite = false;

  explicit BackwardTiles(int64_t head_size)
      : q(kWholeBackward, head_size),
        grad_out(kWholeBackward, head_size),
        k(kTile, head_size),
        v(kTile, head_size),
        k_transposed(kTile * tile_width<A>(head_size)),
        v_transposed(kTile * tile_width<A>(head_size)),
        weights(kTile * kTile),
        grad_scores(kTile * kTile),
        grad_q(kWholeBackward * tile_width<A>(head_size)),
        grad_k(kTile * tile_width<A>(head_size)),
        grad_v(kTile * tile_width<A>(head_size)),
        pairs(kTile * kTile),
        words(kTile * kTile + kPhiloxSlack) {}
};

// x = scale · rows of a tile, which are added to `sum`, too, if there is one.
template <class S, class T, class A>
SSEPT_INLINE void unpack_rows(const A* tile, int64_t rows, int64_t width, A scale, T* x,
                              int64_t x_row, A* sum) {
  const int64_t tile_row = S::template whole_vectors<A>(width);
  for (int64_t r = 0; r < rows; ++r)
    round_row<S, T>(tile + r * tile_row, scale, nullptr, width, x + r * x_row);
  for (int64_t i = 0; sum && i < width; i += S::template kLanes<A>) {
    typename S::template Vec<A> total{};
    for (int64_t r = 0; r < rows; ++r) total += S::load(tile + r * tile_row + i) * scale;
    for (int64_t l = 0; l < std::min(S::template kLanes<A>, width - i); ++l) sum[i + l] += total[l];
  }
}

// From a row of scores and of the gradient of its weights after dropout, to the weights after
// dropout and the gradient of the scores, for the first `visible` of its columns.
template <class S, class A>
SSEPT_INLINE void softmax_backward_row(A* weights, A* grad_scores, const uint32_t* words,
                                       const DropoutSite& dropout, int64_t visible, int64_t columns,
                                       A lse, A delta) {
  constexpr int64_t kLanes = S::template kLanes<A>;
  constexpr A kInfinity = std::numeric_limits<A>::infinity();
  if (lse == -kInfinity) lse = kInfinity;  // all scores are -infinity, and weights 0
  const auto kept = typename S::template Vec<A>{} + static_cast<A>(dropout.scale);
  for (int64_t j = 0; j < columns; j += kLanes) {
    const auto weight = exponential<S, A>(S::load(weights + j) - lse);
    const auto keep = dropped<S, A>(kept, words ? words + j : nullptr, dropout.threshold);
    const auto of_score = weight * (S::load(grad_scores + j) * keep - delta);
    S::store(grad_scores + j, first_lanes<S, A>(of_score, visible - j, A(0)));
    S::store(weights + j, first_lanes<S, A>(weight * keep, visible - j, A(0)));
  }
}

// What the forward and `backward_delta` made of each query and head, (Nq, H) each.
template <class A>
struct QueryStatistics {
  const A *lse, *delta;
};

// Rows of queries and of their gradients, packed.
template <class S, class T, class A = Accumulator<T>>
SSEPT_INLINE void pack_queries(const HeadInputs<T>& x, const T* grad_out, A scale,
                               int64_t head_size, int64_t first, int64_t rows,
                               BackwardTiles<A>& tile) {
  tile.q_finite = tile.q.template pack<S, true, true>(x.q + first * x.row, x.row, rows, head_size,
                                                      scale, S::whole_rows(rows), x.q_bias);
  tile.grad_finite = tile.grad_out.template pack<S, true, true>(
      grad_out + first * x.row, x.row, rows, head_size, A(1), S::whole_rows(rows));
}

// Computes the tile's weights and the gradient of its scores, and adds to the queries' gradient and
// to that of the relative bias, if `bias_sums` is there.
template <class S, class E, class A>
SSEPT_INLINE void score_gradients(const Head<A>& head, const QueryStatistics<A>& saved,
                                  const Unit& unit, const TilePair& tile_pair,
                                  BackwardTiles<A>& tile, A* bias_sums) {
  outlined<S>([&](S) SSEPT_INLINE_LAMBDA {
    const Head<A> x = head;  // copies, which no store to a tile can change
    const TilePair pair = tile_pair;
    const bool wants_query_gradient = unit.wants_query_gradient;
    const bool wants_key_gradient = unit.wants_key_gradient;
    A* const sums = bias_sums;
    const A *const lse = saved.lse, *const delta = saved.delta;
    const int64_t width = S::template whole_vectors<A>(x.size.head_size);
    const int64_t depth = elements_of<E>(x.size.head_size);
    const int64_t row = S::template whole_vectors<A>(depth);
    const TileDropout dropout(x, pair, tile.words.get());
    TimeBuckets buckets;
    for (int64_t r0 = 0; r0 < pair.rows; r0 += S::kRows) {
      const int64_t seen = seen_by_group<S>(pair.visible, r0, pair.keys);
      if (seen == 0) continue;
      const int64_t columns = columns_for<S, A>(seen), packed = (pair.packed_row + r0) * row;
      multiply_rows<S, false>(seen, depth, tile.q.template across<E>() + packed, row, 1,
                              tile.k_transposed.template as<E>(), kTile, tile.weights + r0 * kTile,
                              kTile);
      multiply_rows<S, false>(seen, depth, tile.grad_out.template across<E>() + packed, row, 1,
                              tile.v_transposed.template as<E>(), kTile,
                              tile.grad_scores + r0 * kTile, kTile);
      const int64_t rows = std::min(S::kRows, pair.rows - r0);
      for (int64_t r = r0; r < r0 + whole_elements<E>(rows); ++r) {
        A *const weights = tile.weights + r * kTile, *const scores = tile.grad_scores + r * kTile;
        const int64_t visible = r < pair.rows ? clamp(pair.visible + r, 0, pair.keys) : 0;
        if (visible == 0) {
          std::fill_n(weights, columns, A(0));
          std::fill_n(scores, columns, A(0));
          continue;
        }
        const int64_t query = pair.first_query + r;
        const int64_t entry = (x.query_start + query) * x.size.num_heads + x.index;
        scale_scores<S, E>(weights, visible, static_cast<A>(x.size.scale));
        add_bias(x, query, pair.first_key, visible, weights, buckets);
        softmax_backward_row<S, A>(weights, scores, dropout.row(r), x.dropout, visible, columns,
                                   lse[entry], delta[entry]);
        if (sums) add_bias_gradient(x, query, pair.first_key, visible, scores, buckets, sums);
      }
      if (wants_query_gradient)
        add_products<S>(
            pair.finite, width, elements_of<E>(seen),
            elements_across<S, E>(tile.grad_scores + r0 * kTile, rows, tile.pairs.get()), kTile, 1,
            tile.k.template down<E>(), width, tile.grad_q + (pair.first_row + r0) * width, width);
      if (wants_key_gradient) {
        make_elements_down<S, E>(tile.weights.get(), r0, whole_elements<E>(rows));
        make_elements_down<S, E>(tile.grad_scores.get(), r0, whole_elements<E>(rows));
      }
    }
  });
}

// Adds what the tile's queries contribute to the gradients of its keys and values.
template <class S, class E, class A>
SSEPT_INLINE void add_key_gradients(const TilePair& tile_pair, int64_t tile_width,
                                    BackwardTiles<A>& tile) {
  outlined<S>([&](S) SSEPT_INLINE_LAMBDA {
    const TilePair pair = tile_pair;
    const int64_t width = tile_width;
    for (int64_t j = 0; j < pair.keys; j += S::kRows) {
      // Rows before this one see none of these keys.
      const int64_t r = clamp(j + 1 - pair.visible, 0, pair.rows) / kNumbers<E>;
      const int64_t depth = elements_of<E>(pair.rows) - r;
      const auto add = [&](bool finite, const Buffer<A>& left, const RowTile<A>& right,
                           const Buffer<A>& to) SSEPT_INLINE_LAMBDA {
        add_products<S>(finite, width, depth, left.template as<E>() + r * kTile + j, 1, kTile,
                        right.template down<E>() + (pair.packed_row / kNumbers<E> + r) * width,
                        width, to + j * width, width);
      };
      add(tile.grad_finite, tile.weights, tile.grad_out, tile.grad_v);
      add(tile.q_finite, tile.grad_scores, tile.q, tile.grad_k);
    }
  });
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
  using E = Element<S, T>;
  const auto& s = in.size;
  const HeadInputs<T> x(in, unit.sequence, unit.head);
  const int64_t width = S::template whole_vectors<A>(s.head_size);
  const A scale = static_cast<A>(s.scale);
  const int64_t head_offset = unit.head * s.head_size;
  const int64_t num_queries = unit.last_query - unit.first_query;
  if (unit.wants_query_gradient)
    std::fill_n(tile.grad_q.get(), S::whole_rows(num_queries) * width, A(0));
  const T* const grad_out = g.grad_out + x.query_start * x.row + head_offset;
  const bool packs_all = num_queries <= kWholeBackward;
  if (packs_all)
    pack_queries<S>(x, grad_out, scale, s.head_size, unit.first_query, num_queries, tile);

  for (int64_t k0 = unit.first_key; k0 < unit.last_key; k0 += kTile) {
    const int64_t keys = std::min(kTile, x.num_keys - k0);
    const T* k = x.k + k0 * x.row;
    const bool k_finite = tile.k.template pack<S, false, true>(k, x.row, keys, s.head_size, A(1),
                                                               whole_elements<E>(keys));
    transpose_rows<S>(k, x.row, keys, s.head_size, tile.k, tile.k_transposed);
    transpose_rows<S>(x.v + k0 * x.row, x.row, keys, s.head_size, tile.v, tile.v_transposed,
                      x.v_bias);
    std::fill_n(tile.grad_k.get(), S::whole_rows(keys) * width, A(0));
    std::fill_n(tile.grad_v.get(), S::whole_rows(keys) * width, A(0));

    const int64_t first = std::max(unit.first_query, x.first_query_seeing(k0)) - unit.first_query;
    for (int64_t r0 = first / kTile * kTile; r0 < num_queries; r0 += kTile) {
      const int64_t q0 = unit.first_query + r0;
      const int64_t rows = std::min(kTile, unit.last_query - q0);
      const TilePair pair{.first_row = r0,
                          .rows = rows,
                          .keys = keys,
                          .first_query = q0,
                          .first_key = k0,
                          .visible = x.visible(q0, k0),
                          .finite = k_finite,
                          .packed_row = packs_all ? r0 : 0};
      if (!packs_all) pack_queries<S>(x, grad_out, scale, s.head_size, q0, rows, tile);
      score_gradients<S, E, A>(x, {g.lse, g.delta}, unit, pair, tile,
                               unit.wants_key_gradient ? sums.relative_bias : nullptr);
      if (unit.wants_key_gradient) add_key_gradients<S, E>(pair, width, tile);
    }
    if (unit.wants_key_gradient) {
      const int64_t offset = (x.key_start + k0) * g.grad_kv_row + head_offset;
      const A scale_k = std::is_same_v<E, A> ? A(1) : scale;  // q is scaled, unless in pairs
      unpack_rows<S>(tile.grad_k.get(), keys, s.head_size, scale_k, g.grad_k + offset,
                     g.grad_kv_row, static_cast<A*>(nullptr));
      unpack_rows<S>(tile.grad_v.get(), keys, s.head_size, A(1), g.grad_v + offset, g.grad_kv_row,
                     sums.projection_bias ? sums.projection_bias + s.head_size : nullptr);
    }
  }
  if (unit.wants_query_gradient)
    unpack_rows<S>(tile.grad_q.get(), num_queries, s.head_size, scale,
                   g.grad_q + (x.query_start + unit.first_query) * x.row + head_offset, x.row,
                   sums.projection_bias);
}

}  // namespace ssept::cpu::attention
