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
  Buffer<A> q, k_transposed, v, scores, out, maximum, sum;
  Buffer<uint32_t> words;

  explicit ForwardTiles(int64_t head_size)
      : q(kQueryChunk * tile_width<A>(head_size)),
        k_transposed(kTile * tile_width<A>(head_size)),
        v(kTile * tile_width<A>(head_size)),
        scores(kTile * kTile),
        out(kQueryChunk * tile_width<A>(head_size)),
        maximum(kQueryChunk),
        sum(kQueryChunk),
        words(kTile * kTile + kPhiloxSlack) {}
};

// Turns a row of scores, of which `columns` are looked at, into e^(score - maximum so far) and
// rescales what was summed with an older maximum.
template <class S, class A>
SSEPT_INLINE void online_softmax_row(A* scores, int64_t visible, int64_t columns, A& maximum,
                                     A& sum, A* out, int64_t width) {
  constexpr int64_t kLanes = S::template kLanes<A>;
  using Vec = typename S::template Vec<A>;
  for (int64_t j = visible; j < columns; ++j) scores[j] = -std::numeric_limits<A>::infinity();
  Vec largest = S::load(scores);
  for (int64_t j = kLanes; j < columns; j += kLanes)
    largest = largest > S::load(scores + j) ? largest : S::load(scores + j);
  const A new_maximum = std::max(maximum, horizontal_max<S, A>(largest));
  // Where all scores are -infinity, they stay it.
  const A subtracted = new_maximum == -std::numeric_limits<A>::infinity() ? A(0) : new_maximum;
  Vec total{};
  for (int64_t j = 0; j < columns; j += kLanes) {
    S::store(scores + j, exponential<S, A>(S::load(scores + j) - subtracted));
    total += S::load(scores + j);
  }
  if (maximum != new_maximum) {
    const A correction = std::exp(maximum - new_maximum);
    sum *= correction;
    for (int64_t i = 0; i < width; i += kLanes) S::store(out + i, S::load(out + i) * correction);
    maximum = new_maximum;
  }
  sum += horizontal_sum<S, A>(total);
}

// The output of a unit's queries, also with the residual added, and the logarithm of their scores'
// summed exponentials.
template <class S, class T, class A = Accumulator<T>>
SSEPT_INLINE void compute_output(const Inputs<T>& in, const Unit& unit, ForwardTiles<A>& tile,
                                 const CausalAttentionOutputs<T>& outputs) {
  const auto& s = in.size;
  const HeadOf<T> x(in, unit.sequence, unit.head);
  const int64_t width = S::template whole_vectors<A>(s.head_size);
  const int64_t rows = unit.last_query - unit.first_query;
  const int64_t whole_rows = S::whole_rows(rows);
  pack_rows<S>(x.q + unit.first_query * x.row, x.row, rows, s.head_size, static_cast<A>(s.scale),
               whole_rows, tile.q.get(), x.q_bias);
  std::fill_n(tile.out.get(), whole_rows * width, A(0));
  std::fill_n(tile.maximum.get(), rows, -std::numeric_limits<A>::infinity());
  std::fill_n(tile.sum.get(), rows, A(0));
  TimeBuckets buckets;

  for (int64_t k0 = 0; k0 < unit.last_key; k0 += kTile) {
    const int64_t keys = std::min(kTile, x.num_keys - k0);
    pack_transposed<S>(x.k + k0 * x.row, x.row, keys, s.head_size, kTile, tile.k_transposed.get());
    const bool finite = pack_rows<S>(x.v + k0 * x.row, x.row, keys, s.head_size, A(1), keys,
                                     tile.v.get(), x.v_bias);
    const int64_t first = clamp(x.first_query_seeing(k0) - unit.first_query, 0, rows);
    for (int64_t r0 = first / kTile * kTile; r0 < rows; r0 += kTile) {
      const int64_t tile_rows = std::min(kTile, rows - r0);
      const int64_t visible = x.visible(unit.first_query + r0, k0);
      const TileDropout dropout(in, x.query_start + unit.first_query + r0, tile_rows, unit.head, k0,
                                clamp(visible + tile_rows - 1, 0, keys), tile.words.get());
      for (int64_t g = 0; g < tile_rows; g += S::kRows) {
        const int64_t seen = seen_by_group<S>(visible, g, keys);
        if (seen == 0) continue;
        A* group = tile.scores + g * kTile;
        multiply_rows<S, false>(seen, s.head_size, tile.q + (r0 + g) * width, width, 1,
                                tile.k_transposed.get(), kTile, group, kTile);
        for (int64_t r = g; r < std::min(g + S::kRows, tile_rows); ++r) {
          A* scores = tile.scores + r * kTile;
          const int64_t row_visible = clamp(visible + r, 0, keys);
          if (row_visible == 0) {
            std::fill_n(scores, columns_for<S, A>(seen), A(0));
            continue;
          }
          add_bias(x, unit.first_query + r0 + r, k0, row_visible, scores, buckets);
          online_softmax_row<S, A>(scores, row_visible, columns_for<S, A>(seen),
                                   tile.maximum.get()[r0 + r], tile.sum.get()[r0 + r],
                                   tile.out + (r0 + r) * width, width);
          if (dropout.words)
            drop(scores, row_visible, dropout.words + r * dropout.stride, dropout.site);
        }
        add_product<S>(finite, width, seen, group, kTile, 1, tile.v.get(), width,
                       tile.out + (r0 + g) * width, width);
      }
    }
  }

  const A kept = static_cast<A>(in.dropout.scale);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t token = x.query_start + unit.first_query + r;
    const A sum = tile.sum.get()[r];
    const A factor = sum > 0 ? kept / sum : A(0);
    const int64_t offset = token * x.row + unit.head * s.head_size;
    for (int64_t i = 0; i < s.head_size; ++i)
      outputs.out[offset + i] = static_cast<T>(factor * tile.out.get()[r * width + i]);
    for (int64_t i = 0; outputs.residual && i < s.head_size; ++i)
      outputs.sum[offset + i] = static_cast<T>(factor * tile.out.get()[r * width + i] +
                                               static_cast<A>(outputs.residual[offset + i]));
    outputs.lse[token * s.num_heads + unit.head] = tile.maximum.get()[r] + std::log(sum);
  }
}

}  // namespace ssept::cpu::attention
