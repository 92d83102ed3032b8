// How the CPU kernels of `causal_attention` divide their work: a unit is some queries and some keys
// of one sequence and head, which are met in tiles of kTile by kTile. A unit writes outputs of its
// own, so results do not depend on the number of threads.
#pragma once
#include <algorithm>
#include <vector>

#include "cpu/philox.h"
#include "ops/causal_attention/args.h"
#include "ops/causal_attention/cpu_row_tile.h"

namespace ssept::cpu::attention {

// Queries that one unit of the forward takes through all keys: enough to pay for packing the keys,
// few enough that their state stays in the L2 cache.
constexpr int64_t kQueryChunk = 8 * kTile;

// Part of the work of one sequence and head.
struct Unit {
  int64_t sequence, head;
  int64_t first_query, last_query;  // within the sequence; last is one past the end
  int64_t first_key, last_key;
  bool wants_query_gradient, wants_key_gradient;

  int64_t cost() const { return (last_query - first_query) * (last_key - first_key); }
};

// Sorts the units, the costly first, and calls f(unit, tiles) for all, on torch's threads. Each
// thread has tiles of its own.
template <class Tiles, class F>
void for_each_unit(std::vector<Unit>& units, int64_t head_size, F&& f) {
  std::stable_sort(units.begin(), units.end(),
                   [](const Unit& x, const Unit& y) { return x.cost() > y.cost(); });
  for_each_part(
      static_cast<int64_t>(units.size()), [&] { return Tiles(head_size); },
      [&](int64_t i, Tiles& tiles) { f(units[i], tiles); });
}

template <class T>
struct Inputs : CausalAttentionWithBias<T> {
  // Of `multi_head_attention`, or null: (H, Dh), to be added to every row of q and v.
  const Accumulator<T>*q_bias = nullptr, *v_bias = nullptr;
};

// What scores are made of besides queries and keys, of one sequence and head: nothing of the type
// of the inputs, so that types share the code of the inner loops.
template <class A>
struct Head {
  int64_t index;                   // of the head
  int64_t query_start, key_start;  // of the sequence, among all tokens
  int64_t num_queries, num_keys;   // of the sequence
  CausalAttentionSizes size;
  DropoutSite dropout;
  RelativeBias<A> bias;  // of the head and the sequence's first tokens

  template <class T>
  SSEPT_INLINE Head(const Inputs<T>& in, int64_t b, int64_t h)
      : index(h),
        query_start(in.cu_seqlens_q[b]),
        key_start(in.cu_seqlens_k[b]),
        num_queries(in.cu_seqlens_q[b + 1] - query_start),
        num_keys(in.cu_seqlens_k[b + 1] - key_start),
        size(in.size),
        dropout(in.dropout),
        bias(in.bias) {
    if (bias.position) bias.position += h * bias.num_positions;
    if (bias.time) {
      bias.time += h * kTimeBuckets;
      bias.query_times += query_start;
      bias.key_times += key_start;
    }
  }

  // How many of the keys from `first_key` on a query sees.
  SSEPT_INLINE int64_t visible(int64_t query, int64_t first_key) const {
    return num_keys - num_queries + query + 1 - first_key;
  }
  // The first query that sees key `key`.
  SSEPT_INLINE int64_t first_query_seeing(int64_t key) const {
    return std::max<int64_t>(0, key - (num_keys - num_queries));
  }
};

// One sequence and head of the inputs.
template <class T>
struct HeadInputs : Head<Accumulator<T>> {
  int64_t row;                           // elements between tokens
  const T *q, *k, *v;                    // of the sequence's first token
  const Accumulator<T>*q_bias, *v_bias;  // of the head, or null

  SSEPT_INLINE HeadInputs(const Inputs<T>& in, int64_t b, int64_t h)
      : Head<Accumulator<T>>(in, b, h),
        row(in.size.num_heads * in.size.head_size),
        q(in.q + this->query_start * row + h * in.size.head_size),
        k(in.k + this->key_start * row + h * in.size.head_size),
        v(in.v + this->key_start * row + h * in.size.head_size),
        q_bias(in.q_bias ? in.q_bias + h * in.size.head_size : nullptr),
        v_bias(in.v_bias ? in.v_bias + h * in.size.head_size : nullptr) {}
};

SSEPT_INLINE int64_t clamp(int64_t x, int64_t low, int64_t high) {
  return x < low ? low : x > high ? high : x;
}

// A tile of a unit's queries and a tile of keys.
struct TilePair {
  int64_t first_row, rows, keys;   // first_row: the first query's, within the unit
  int64_t first_query, first_key;  // within the sequence
  int64_t visible;                 // keys that the first query sees, maybe below 0
  bool finite;                     // whether what is weighted, values or keys, is
  int64_t packed_row = 0;          // of the backward: the first query's, among the packed rows
};

// The words that decide which weights of a tile are dropped, (rows, stride).
struct TileDropout {
  const uint32_t* words;  // null where nothing is dropped
  int64_t stride;
  DropoutSite site;

  SSEPT_INLINE const uint32_t* row(int64_t r) const { return words ? words + r * stride : nullptr; }

  // For the keys that one of the queries sees.
  template <class A>
  SSEPT_INLINE TileDropout(const Head<A>& x, const TilePair& pair, uint32_t* buffer)
      : words(x.dropout.seed ? buffer : nullptr), site(x.dropout) {
    const int64_t quads = (clamp(pair.visible + pair.rows - 1, 0, pair.keys) + 3) / 4;
    const int64_t heads = x.size.num_heads, token = x.query_start + pair.first_query;
    stride = 4 * quads;
    if (words)
      philox_words(buffer, {token * heads + x.index, heads, pair.rows, pair.first_key / 4, quads},
                   site.site, *site.seed);
  }
};

// The first `count` lanes of x, which may be none or all, and `other` in those behind them.
template <class S, class A>
SSEPT_INLINE typename S::template Vec<A> first_lanes(typename S::template Vec<A> x, int64_t count,
                                                     A other) {
  typename S::template Vec<A> lane;
  for (int64_t l = 0; l < S::template kLanes<A>; ++l) lane[l] = static_cast<A>(l);
  return lane < static_cast<A>(count) ? x : typename S::template Vec<A>{} + other;
}

// Keys that the last of a group of rows sees in a tile, where the tile's first row sees `visible`
// (maybe below 0): what is computed for all rows of the group.
template <class S>
SSEPT_INLINE int64_t seen_by_group(int64_t visible, int64_t first_row, int64_t keys) {
  return clamp(visible + first_row + S::kRows - 1, 0, keys);
}

// Columns of a tile of scores that have to be filled for a group of rows that sees `seen` keys: all
// that products of whole vectors or of groups of keys look at.
template <class S, class A>
SSEPT_INLINE int64_t columns_for(int64_t seen) {
  return S::whole_rows(S::template whole_vectors<A>(seen));
}

// Queries are scaled as they are packed, but pairs are not, which would round them once more: then
// their scores are.
template <class S, class E, class A>
SSEPT_INLINE void scale_scores(A* scores, int64_t columns, A scale) {
  if constexpr (std::is_same_v<E, Pair>)
    for (int64_t j = 0; j < columns; j += S::template kLanes<A>)
      S::store(scores + j, S::load(scores + j) * scale);
}

// Units for all sequences and heads. add(units, x, unit) appends those of the head x, of which
// `unit` is the whole.
template <class T, class F>
std::vector<Unit> make_units(const Inputs<T>& in, F&& add) {
  std::vector<Unit> units;
  for (int64_t b = 0; b < in.size.num_sequences; ++b)
    for (int64_t h = 0; h < in.size.num_heads; ++h) {
      const HeadInputs<T> x(in, b, h);
      add(units, x, Unit{b, h, 0, x.num_queries, 0, x.num_keys, true, true});
    }
  return units;
}

}  // namespace ssept::cpu::attention
