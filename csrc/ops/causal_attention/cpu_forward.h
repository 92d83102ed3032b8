// The forward of `causal_attention` on the CPU: online softmax, as in FlashAttention.
#pragma once
#include <cmath>
#include <limits>

#include "ops/causal_attention/cpu_relative_bias.h"

namespace ssept::cpu::attention {

// A chunk of queries and all keys that they see.
template <class T>
std::vector<Unit> forward_units(const Inputs<T>& in) {
  return make_units(in, [](auto& units, const auto& x, Unit unit) {
    for (int64_t first = 0; first < x.num_queries; first += kQueryChunk) {
      unit.first_query = first;
      unit.last_query = std::min(first + kQueryChunk, x.num_queries);
      // The chunk's last query sees the most keys.
      unit.last_key = clamp(x.visible(unit.last_query - 1, 0), 0, x.num_keys);
      units.push_back(unit);
    }
  });
}

template <class A>
struct ForwardTiles {
  RowTile<A> q, k, v;
  Buffer<A> k_transposed, scores, out, maximum, sum;
  Buffer<uint32_t> words;

  explicit ForwardTiles(int64_t head_size)
      : q(kQueryChunk, head_size),
        k(kTile, head_size),
        v(kTile, head_size),
        k_transposed(kTile * tile_width<A>(head_size)),
        scores(kTile * kTile),
        out(kQueryChunk * tile_width<A>(head_size)),
        maximum(kQueryChunk),
        sum(kQueryChunk * kMaxLanes<A>),
        words(kTile * kTile + kPhiloxSlack) {}
};

// A maximum that is too low by less than this may stay: sums are then larger by a factor of e^8 at
// most, and fewer rows are rescaled.
template <class A>
constexpr A kMaximumLag = 8;

// Turns a row of scores, of which `columns` are looked at and the first `visible` are seen, into
// e^(score - maximum so far), without what `words`, unless they are null, drop. Rescales what was
// summed with an older maximum: `out`, and a vector of sums.
template <class S, class A>
SSEPT_INLINE void online_softmax_row(A* scores, int64_t visible, int64_t columns,
                                     const uint32_t* words, uint32_t threshold, A& maximum, A* sums,
                                     A* out, int64_t width) {
  constexpr int64_t kLanes = S::template kLanes<A>;
  constexpr A kInfinity = std::numeric_limits<A>::infinity();
  using Vec = typename S::template Vec<A>;
  Vec largest = Vec{} - kInfinity;
  for (int64_t j = 0; j < columns; j += kLanes) {
    const Vec seen = first_lanes<S, A>(S::load(scores + j), visible - j, -kInfinity);
    S::store(scores + j, seen);
    largest = largest > seen ? largest : seen;
  }
  const A new_maximum = horizontal_max<S, A>(largest);
  Vec total = S::load(sums);
  if (new_maximum > maximum + kMaximumLag<A>) {
    const A correction = std::exp(maximum - new_maximum);
    total *= correction;
    for (int64_t i = 0; i < width; i += kLanes) S::store(out + i, S::load(out + i) * correction);
    maximum = new_maximum;
  }
  // Where all scores are -infinity, they stay it.
  const A subtracted = maximum == -kInfinity ? A(0) : maximum;
  for (int64_t j = 0; j < columns; j += kLanes) {
    const Vec weights = exponential<S, A>(S::load(scores + j) - subtracted);
    total += weights;
    S::store(scores + j, dropped<S, A>(weights, words ? words + j : nullptr, threshold));
  }
  S::store(sums, total);
}

// Weighs a tile of values for a tile of queries, and adds them to their sums.
template <class S, class E, class A>
SSEPT_INLINE void add_weighted_values(const Head<A>& x, const TilePair& tile_pair,
                                      ForwardTiles<A>& tile) {
  outlined<S>([&](S) SSEPT_INLINE_LAMBDA {
    const TilePair pair = tile_pair;  // copies, which no store to a tile can change
    A *const all_scores = tile.scores.get(), *const out = tile.out.get(),
             *const sums = tile.sum.get();
    A* const maximum = tile.maximum.get();
    constexpr int64_t kLanes = S::template kLanes<A>;
    const int64_t width = S::template whole_vectors<A>(x.size.head_size);
    const int64_t depth = elements_of<E>(x.size.head_size);
    const int64_t q_row = S::template whole_vectors<A>(depth);
    const TileDropout dropout(x, pair, tile.words.get());
    TimeBuckets buckets;
    for (int64_t g = 0; g < pair.rows; g += S::kRows) {
      const int64_t seen = seen_by_group<S>(pair.visible, g, pair.keys);
      if (seen == 0) continue;
      const int64_t first_row = pair.first_row + g;
      A* group = all_scores + g * kTile;
      multiply_rows<S, false>(seen, depth, tile.q.template across<E>() + first_row * q_row, q_row,
                              1, tile.k_transposed.template as<E>(), kTile, group, kTile);
      for (int64_t r = g; r < std::min(g + S::kRows, pair.rows); ++r) {
        A* scores = all_scores + r * kTile;
        const int64_t row = pair.first_row + r, visible = clamp(pair.visible + r, 0, pair.keys);
        if (visible == 0) {
          std::fill_n(scores, columns_for<S, A>(seen), A(0));
          continue;
        }
        scale_scores<S, E>(scores, visible, static_cast<A>(x.size.scale));
        add_bias(x, pair.first_query + r, pair.first_key, visible, scores, buckets);
        online_softmax_row<S, A>(scores, visible, columns_for<S, A>(seen), dropout.row(r),
                                 dropout.site.threshold, maximum[row], sums + row * kLanes,
                                 out + row * width, width);
      }
      add_products<S>(pair.finite, width, elements_of<E>(seen),
                      elements_across<S, E>(group, std::min(S::kRows, pair.rows - g), group), kTile,
                      1, tile.v.template down<E>(), width, out + first_row * width, width);
    }
  });
}

// The output of a unit's queries, also with the residual added, and the logarithm of their scores'
// summed exponentials.
template <class S, class T, class A = Accumulator<T>>
SSEPT_INLINE void compute_output(const Inputs<T>& in, const Unit& unit, ForwardTiles<A>& tile,
                                 const CausalAttentionOutputs<T>& outputs) {
  using E = Element<S, T>;
  constexpr int64_t kLanes = S::template kLanes<A>;
  const auto& s = in.size;
  const HeadInputs<T> x(in, unit.sequence, unit.head);
  const int64_t width = S::template whole_vectors<A>(s.head_size);
  const int64_t rows = unit.last_query - unit.first_query;
  const int64_t whole_rows = S::whole_rows(rows);
  const A scale = static_cast<A>(s.scale);
  tile.q.template pack<S, true, false>(x.q + unit.first_query * x.row, x.row, rows, s.head_size,
                                       scale, whole_rows, x.q_bias);
  std::fill_n(tile.out.get(), whole_rows * width, A(0));
  std::fill_n(tile.maximum.get(), rows, -std::numeric_limits<A>::infinity());
  std::fill_n(tile.sum.get(), rows * kLanes, A(0));

  for (int64_t k0 = 0; k0 < unit.last_key; k0 += kTile) {
    const int64_t keys = std::min(kTile, x.num_keys - k0);
    transpose_rows<S>(x.k + k0 * x.row, x.row, keys, s.head_size, tile.k, tile.k_transposed);
    const bool finite = tile.v.template pack<S, false, true>(
        x.v + k0 * x.row, x.row, keys, s.head_size, A(1), whole_elements<E>(keys), x.v_bias);
    const int64_t first = clamp(x.first_query_seeing(k0) - unit.first_query, 0, rows);
    for (int64_t r0 = first / kTile * kTile; r0 < rows; r0 += kTile) {
      const int64_t q0 = unit.first_query + r0;
      const TilePair pair{.first_row = r0,
                          .rows = std::min(kTile, rows - r0),
                          .keys = keys,
                          .first_query = q0,
                          .first_key = k0,
                          .visible = x.visible(q0, k0),
                          .finite = finite};
      add_weighted_values<S, E, A>(x, pair, tile);
    }
  }

  const A kept = static_cast<A>(in.dropout.scale);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t token = x.query_start + unit.first_query + r;
    const A sum = horizontal_sum<S, A>(S::load(tile.sum + r * kLanes));
    const A factor = sum == 0 ? A(0) : kept / sum;
    const int64_t offset = token * x.row + unit.head * s.head_size;
    const A* const row = tile.out + r * width;
    round_row<S, T>(row, factor, nullptr, s.head_size, outputs.out + offset);
    if (outputs.residual)
      round_row<S, T>(row, factor, outputs.residual + offset, s.head_size, outputs.sum + offset);
    outputs.lse[token * s.num_heads + unit.head] = tile.maximum.get()[r] + std::log(sum);
  }
}

}  // namespace ssept::cpu::attention
