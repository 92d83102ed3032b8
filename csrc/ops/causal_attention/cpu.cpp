// CPU kernels of `causal_attention`: tiles of 32 queries and 32 keys of one sequence and head, with
// online softmax. A unit of work writes outputs of its own, so results do not depend on the number
// of threads.
#include <algorithm>
#include <atomic>
#include <limits>
#include <tuple>
#include <vector>

#include "common/library.h"
#include "cpu/philox.h"
#include "cpu/tiles.h"
#include "cpu/vector_ops.h"
#include "ops/causal_attention/args.h"

namespace ssept::cpu {
namespace {

constexpr int64_t kTile = 32;
// Queries that one unit of the forward takes through all keys: enough to pay for packing the keys,
// few enough that their state stays in the L2 cache.
constexpr int64_t kQueryChunk = 8 * kTile;
// Sequences up to this length have all gradients computed together; longer ones are split, for the
// memory of their queries' gradient and so that all threads have work, at the price of computing
// the scores twice.
constexpr int64_t kWholeBackward = 16 * kTile;

// Part of the work of one sequence and head.
struct Unit {
  int64_t sequence, head;
  int64_t first_query, last_query;  // within the sequence; last is one past the end
  int64_t first_key, last_key;
  bool wants_query_gradient, wants_key_gradient;

  int64_t cost() const { return (last_query - first_query) * (last_key - first_key); }
};

// Calls f(next) on each of torch's threads. next() hands out the units, the costly first, and null
// when none is left.
template <class F>
void for_each_unit(std::vector<Unit>& units, F&& f) {
  std::stable_sort(units.begin(), units.end(),
                   [](const Unit& x, const Unit& y) { return x.cost() > y.cost(); });
  std::atomic<size_t> next{0};
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), units.size());
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    f([&]() -> const Unit* {
      const size_t i = next++;
      return i < units.size() ? &units[i] : nullptr;
    });
  });
}

// One sequence and head of the inputs.
template <class T>
struct HeadOf {
  int64_t query_start, key_start;  // of the sequence, among all tokens
  int64_t num_queries, num_keys;   // of the sequence
  int64_t row;                     // elements between tokens
  const T *q, *k, *v;              // of the sequence's first token

  SSEPT_INLINE HeadOf(const CausalAttention<T>& in, int64_t b, int64_t h)
      : query_start(in.cu_seqlens_q[b]),
        key_start(in.cu_seqlens_k[b]),
        num_queries(in.cu_seqlens_q[b + 1] - query_start),
        num_keys(in.cu_seqlens_k[b + 1] - key_start),
        row(in.size.num_heads * in.size.head_size),
        q(in.q + query_start * row + h * in.size.head_size),
        k(in.k + key_start * row + h * in.size.head_size),
        v(in.v + key_start * row + h * in.size.head_size) {}

  // How many of the keys from `first_key` on a query sees.
  SSEPT_INLINE int64_t visible(int64_t query, int64_t first_key) const {
    return num_keys - num_queries + query + 1 - first_key;
  }
  // The first query that sees key `key`.
  SSEPT_INLINE int64_t first_query_seeing(int64_t key) const {
    return std::max<int64_t>(0, key - (num_keys - num_queries));
  }
};

SSEPT_INLINE int64_t clamp(int64_t x, int64_t low, int64_t high) {
  return x < low ? low : x > high ? high : x;
}

// The words that decide which weights of a tile are dropped, (rows, stride).
struct TileDropout {
  const uint32_t* words;  // null where nothing is dropped
  int64_t stride;
  DropoutSite site;

  // For the first `keys` keys from `first_key` on, of rows of queries from `first_token` on.
  template <class T>
  SSEPT_INLINE TileDropout(const CausalAttention<T>& in, int64_t first_token, int64_t rows,
                           int64_t head, int64_t first_key, int64_t keys, uint32_t* buffer)
      : words(in.seed ? buffer : nullptr), stride((keys + 3) / 4 * 4), site(in.dropout) {
    const int64_t heads = in.size.num_heads;
    if (words)
      philox_words(buffer, {first_token * heads + head, heads, rows, first_key / 4, (keys + 3) / 4},
                   site.site, *in.seed);
  }
};

template <class A>
int64_t tile_width(int64_t head_size) {
  return (head_size + kMaxLanes<A> - 1) / kMaxLanes<A> * kMaxLanes<A>;
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
  Vec largest = S::at(scores);
  for (int64_t j = kLanes; j < columns; j += kLanes)
    largest = largest > S::at(scores + j) ? largest : S::at(scores + j);
  const A new_maximum = std::max(maximum, horizontal_max<S, A>(largest));
  Vec total{};
  for (int64_t j = 0; j < columns; j += kLanes) {
    S::at(scores + j) = exponential<S, A>(S::at(scores + j) - new_maximum);
    total += S::at(scores + j);
  }
  if (maximum != new_maximum) {
    const A correction = std::exp(maximum - new_maximum);
    sum *= correction;
    for (int64_t i = 0; i < width; i += kLanes) S::at(out + i) *= correction;
    maximum = new_maximum;
  }
  sum += horizontal_sum<S, A>(total);
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

template <class S, class T, class A = Accumulator<T>>
SSEPT_INLINE void forward(const CausalAttention<T>& in, const Unit& unit, ForwardTiles<A>& tile,
                          T* out, A* lse) {
  const auto& s = in.size;
  const HeadOf<T> x(in, unit.sequence, unit.head);
  const int64_t width = S::template whole_vectors<A>(s.head_size);
  const int64_t rows = unit.last_query - unit.first_query;
  const int64_t whole_rows = S::whole_rows(rows);
  pack_rows<S>(x.q + unit.first_query * x.row, x.row, rows, s.head_size, static_cast<A>(s.scale),
               whole_rows, tile.q.get());
  std::fill_n(tile.out.get(), whole_rows * width, A(0));
  std::fill_n(tile.maximum.get(), rows, -std::numeric_limits<A>::infinity());
  std::fill_n(tile.sum.get(), rows, A(0));

  for (int64_t k0 = 0; k0 < unit.last_key; k0 += kTile) {
    const int64_t keys = std::min(kTile, x.num_keys - k0);
    pack_transposed<S>(x.k + k0 * x.row, x.row, keys, s.head_size, kTile, tile.k_transposed.get());
    pack_rows<S>(x.v + k0 * x.row, x.row, keys, s.head_size, A(1), keys, tile.v.get());
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
          online_softmax_row<S, A>(scores, row_visible, columns_for<S, A>(seen),
                                   tile.maximum.get()[r0 + r], tile.sum.get()[r0 + r],
                                   tile.out + (r0 + r) * width, width);
          if (dropout.words)
            drop(scores, row_visible, dropout.words + r * dropout.stride, dropout.site);
        }
        multiply_rows<S, true>(width, seen, group, kTile, 1, tile.v.get(), width,
                               tile.out + (r0 + g) * width, width);
      }
    }
  }

  const A kept = in.seed ? static_cast<A>(in.dropout.scale) : A(1);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t token = x.query_start + unit.first_query + r;
    const A sum = tile.sum.get()[r];
    const A factor = sum > 0 ? kept / sum : A(0);
    T* to = out + token * x.row + unit.head * s.head_size;
    for (int64_t i = 0; i < s.head_size; ++i)
      to[i] = static_cast<T>(factor * tile.out.get()[r * width + i]);
    lse[token * s.num_heads + unit.head] = tile.maximum.get()[r] + std::log(sum);
  }
}

template <class T, class A>
struct Gradients {
  const T* grad_out;  // (Nq, H, Dh)
  const A* lse;       // (Nq, H)
  const A* delta;     // (Nq, H), the sum of grad_out * out over a head's features
  T *grad_q, *grad_k, *grad_v;
};

template <class A>
struct BackwardTiles {
  Buffer<A> q, grad_out, k, k_transposed, v_transposed;
  Buffer<A> weights, grad_weights;
  Buffer<A> grad_q, grad_k, grad_v;
  Buffer<uint32_t> words;

  explicit BackwardTiles(int64_t head_size)
      : q(kTile * tile_width<A>(head_size)),
        grad_out(kTile * tile_width<A>(head_size)),
        k(kTile * tile_width<A>(head_size)),
        k_transposed(kTile * tile_width<A>(head_size)),
        v_transposed(kTile * tile_width<A>(head_size)),
        weights(kTile * kTile),
        grad_weights(kTile * kTile),
        grad_q(kWholeBackward * tile_width<A>(head_size)),
        grad_k(kTile * tile_width<A>(head_size)),
        grad_v(kTile * tile_width<A>(head_size)),
        words(kTile * kTile + kPhiloxSlack) {}
};

template <class S, class T, class A>
SSEPT_INLINE void unpack_rows(const A* tile, int64_t rows, int64_t width, A scale, T* x,
                              int64_t x_row) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < width; ++i)
      x[r * x_row + i] = static_cast<T>(scale * tile[r * S::template whole_vectors<A>(width) + i]);
}

// From a row of scores and of the gradient of its weights after dropout, to the weights after
// dropout and the gradient of the scores. `keep` is what dropout multiplies each weight by.
template <class S, class A>
SSEPT_INLINE void softmax_backward_row(A* weights, A* grad_weights, const A* keep, int64_t visible,
                                       int64_t columns, A lse, A delta) {
  constexpr int64_t kLanes = S::template kLanes<A>;
  for (int64_t j = visible; j < columns; ++j) weights[j] = -std::numeric_limits<A>::infinity();
  for (int64_t j = 0; j < columns; j += kLanes) {
    const auto weight = exponential<S, A>(S::at(weights + j) - lse);
    S::at(grad_weights + j) = weight * (S::at(grad_weights + j) * S::at(keep + j) - delta);
    S::at(weights + j) = weight * S::at(keep + j);
  }
}

template <class S, class T, class A = Accumulator<T>>
SSEPT_INLINE void backward(const CausalAttention<T>& in, const Gradients<T, A>& g, const Unit& unit,
                           BackwardTiles<A>& tile) {
  const auto& s = in.size;
  const HeadOf<T> x(in, unit.sequence, unit.head);
  const int64_t width = S::template whole_vectors<A>(s.head_size);
  const int64_t head_offset = unit.head * s.head_size;
  const int64_t num_queries = unit.last_query - unit.first_query;
  const A kept = in.seed ? static_cast<A>(in.dropout.scale) : A(1);
  A keep[kTile];
  std::fill_n(keep, kTile, A(1));
  if (unit.wants_query_gradient)
    std::fill_n(tile.grad_q.get(), S::whole_rows(num_queries) * width, A(0));

  for (int64_t k0 = unit.first_key; k0 < unit.last_key; k0 += kTile) {
    const int64_t keys = std::min(kTile, x.num_keys - k0);
    const T* k = x.k + k0 * x.row;
    pack_rows<S>(k, x.row, keys, s.head_size, A(1), keys, tile.k.get());
    pack_transposed<S>(k, x.row, keys, s.head_size, kTile, tile.k_transposed.get());
    pack_transposed<S>(x.v + k0 * x.row, x.row, keys, s.head_size, kTile, tile.v_transposed.get());
    std::fill_n(tile.grad_k.get(), S::whole_rows(keys) * width, A(0));
    std::fill_n(tile.grad_v.get(), S::whole_rows(keys) * width, A(0));

    const int64_t first = std::max(unit.first_query, x.first_query_seeing(k0)) - unit.first_query;
    for (int64_t r0 = first / kTile * kTile; r0 < num_queries; r0 += kTile) {
      const int64_t q0 = unit.first_query + r0;
      const int64_t rows = std::min(kTile, unit.last_query - q0);
      const int64_t token = x.query_start + q0;
      const int64_t visible = x.visible(q0, k0);
      const TileDropout dropout(in, token, rows, unit.head, k0, clamp(visible + rows - 1, 0, keys),
                                tile.words.get());
      pack_rows<S>(x.q + q0 * x.row, x.row, rows, s.head_size, static_cast<A>(s.scale),
                   S::whole_rows(rows), tile.q.get());
      pack_rows<S>(g.grad_out + token * x.row + head_offset, x.row, rows, s.head_size, A(1),
                   S::whole_rows(rows), tile.grad_out.get());
      for (int64_t r1 = 0; r1 < rows; r1 += S::kRows) {
        const int64_t seen = seen_by_group<S>(visible, r1, keys);
        if (seen == 0) continue;
        const int64_t columns = columns_for<S, A>(seen);
        multiply_rows<S, false>(seen, s.head_size, tile.q + r1 * width, width, 1,
                                tile.k_transposed.get(), kTile, tile.weights + r1 * kTile, kTile);
        multiply_rows<S, false>(seen, s.head_size, tile.grad_out + r1 * width, width, 1,
                                tile.v_transposed.get(), kTile, tile.grad_weights + r1 * kTile,
                                kTile);
        for (int64_t r = r1; r < std::min(r1 + S::kRows, rows); ++r) {
          const int64_t row_visible = clamp(visible + r, 0, keys);
          if (row_visible == 0) {
            std::fill_n(tile.weights + r * kTile, columns, A(0));
            std::fill_n(tile.grad_weights + r * kTile, columns, A(0));
            continue;
          }
          if (dropout.words) {
            std::fill_n(keep, kTile, kept);
            drop(keep, row_visible, dropout.words + r * dropout.stride, dropout.site);
          }
          const int64_t entry = (token + r) * s.num_heads + unit.head;
          softmax_backward_row<S, A>(tile.weights + r * kTile, tile.grad_weights + r * kTile, keep,
                                     row_visible, columns, g.lse[entry], g.delta[entry]);
        }
        if (unit.wants_query_gradient)
          multiply_rows<S, true>(width, seen, tile.grad_weights + r1 * kTile, kTile, 1,
                                 tile.k.get(), width, tile.grad_q + (r0 + r1) * width, width);
      }
      if (!unit.wants_key_gradient) continue;
      for (int64_t j = 0; j < keys; j += S::kRows) {
        // Rows before this one see none of these keys.
        const int64_t r = clamp(j + 1 - visible, 0, rows);
        multiply_rows<S, true>(width, rows - r, tile.weights + r * kTile + j, 1, kTile,
                               tile.grad_out + r * width, width, tile.grad_v + j * width, width);
        multiply_rows<S, true>(width, rows - r, tile.grad_weights + r * kTile + j, 1, kTile,
                               tile.q + r * width, width, tile.grad_k + j * width, width);
      }
    }
    if (unit.wants_key_gradient) {
      const int64_t offset = (x.key_start + k0) * x.row + head_offset;
      unpack_rows<S>(tile.grad_k.get(), keys, s.head_size, A(1), g.grad_k + offset, x.row);
      unpack_rows<S>(tile.grad_v.get(), keys, s.head_size, A(1), g.grad_v + offset, x.row);
    }
  }
  if (unit.wants_query_gradient)
    unpack_rows<S>(tile.grad_q.get(), num_queries, s.head_size, static_cast<A>(s.scale),
                   g.grad_q + (x.query_start + unit.first_query) * x.row + head_offset, x.row);
}

// delta of each query and head: what every weight's gradient has in common.
template <class T, class A = Accumulator<T>>
SSEPT_SIMD_CLONES void backward_delta(const T* grad_out, const T* out, int64_t head_size, A* delta,
                                      int64_t begin, int64_t end) {
  for (int64_t e = begin; e < end; ++e) {
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = e * head_size; i < (e + 1) * head_size; ++i)
      sum += static_cast<A>(grad_out[i]) * static_cast<A>(out[i]);
    delta[e] = sum;
  }
}

template <class T>
void check_all_offsets(const CausalAttention<T>& in) {
  const auto& s = in.size;
  const auto check_side = [&](const char* name, const int32_t* offsets, int64_t tokens,
                              int64_t max_seqlen) {
    check_offsets(name, offsets, s.num_sequences, tokens);
    int64_t longest = 0;
    for (int64_t b = 0; b < s.num_sequences; ++b)
      longest = std::max<int64_t>(longest, offsets[b + 1] - offsets[b]);
    check(longest <= max_seqlen, "max_seqlen of ", name, " is ", max_seqlen,
          ", but a sequence has ", longest, " tokens");
  };
  check_side("cu_seqlens_q", in.cu_seqlens_q, s.num_queries, s.max_seqlen_q);
  check_side("cu_seqlens_k", in.cu_seqlens_k, s.num_keys, s.max_seqlen_k);
}

// Units for all sequences and heads. add(units, x, unit) appends those of the head x, of which
// `unit` is the whole.
template <class T, class F>
std::vector<Unit> make_units(const CausalAttention<T>& in, F&& add) {
  std::vector<Unit> units;
  for (int64_t b = 0; b < in.size.num_sequences; ++b)
    for (int64_t h = 0; h < in.size.num_heads; ++h) {
      const HeadOf<T> x(in, b, h);
      add(units, x, Unit{b, h, 0, x.num_queries, 0, x.num_keys, true, true});
    }
  return units;
}

std::tuple<Tensor, Tensor> causal_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                            const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k,
                                            int64_t max_seqlen_q, int64_t max_seqlen_k,
                                            double scale, double dropout_p,
                                            const std::optional<Tensor>& seed, int64_t site,
                                            bool /*allow_tf32*/) {
  const CausalAttentionArgs args(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
                                 scale, dropout_p, seed, site);
  const auto& s = args.size;
  const Tensor out = torch::stable::new_empty(q, {s.num_queries, s.num_heads, s.head_size});
  const Tensor lse =
      torch::stable::new_empty(q, {s.num_queries, s.num_heads}, accumulator_type(args.type));
  dispatch_floating("q", args.type, [&]<class T>() {
    using A = Accumulator<T>;
    const auto in = args.kernel_args<T>();
    check_all_offsets(in);
    zero_rows_from(out, in.cu_seqlens_q[s.num_sequences]);
    zero_rows_from(lse, in.cu_seqlens_q[s.num_sequences]);
    auto units = make_units(in, [](auto& units, const auto& x, Unit unit) {
      for (int64_t first = 0; first < x.num_queries; first += kQueryChunk) {
        unit.first_query = first;
        unit.last_query = std::min(first + kQueryChunk, x.num_queries);
        // The chunk's last query sees the most keys.
        unit.last_key = clamp(x.visible(unit.last_query - 1, 0), 0, x.num_keys);
        units.push_back(unit);
      }
    });
    for_each_unit(units, [&](auto&& next) {
      ForwardTiles<A> tile(s.head_size);
      while (const Unit* unit = next())
        with_simd([&]<class S>(S) SSEPT_INLINE_LAMBDA {
          forward<S, T>(in, *unit, tile, mutable_data<T>(out), mutable_data<A>(lse));
        });
    });
  });
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor> causal_attention_backward(
    const Tensor& grad_out, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
    const Tensor& lse, const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k, int64_t max_seqlen_q,
    int64_t max_seqlen_k, double scale, double dropout_p, const std::optional<Tensor>& seed,
    int64_t site, bool /*allow_tf32*/) {
  const CausalAttentionArgs args(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
                                 scale, dropout_p, seed, site);
  const auto& s = args.size;
  const Tensor grad = args.contiguous_like_q("grad_out", grad_out);
  const Tensor result = args.contiguous_like_q("out", out);
  const Tensor log_sum = args.contiguous_lse(lse, accumulator_type(args.type));
  const Tensor grad_q = torch::stable::new_empty(q, {s.num_queries, s.num_heads, s.head_size});
  const Tensor grad_k = torch::stable::new_empty(k, {s.num_keys, s.num_heads, s.head_size});
  const Tensor grad_v = torch::stable::new_empty(v, {s.num_keys, s.num_heads, s.head_size});
  dispatch_floating("q", args.type, [&]<class T>() {
    using A = Accumulator<T>;
    const auto in = args.kernel_args<T>();
    check_all_offsets(in);
    zero_rows_from(grad_q, in.cu_seqlens_q[s.num_sequences]);
    zero_rows_from(grad_k, in.cu_seqlens_k[s.num_sequences]);
    zero_rows_from(grad_v, in.cu_seqlens_k[s.num_sequences]);
    std::vector<A> delta(s.num_queries * s.num_heads);
    torch::stable::parallel_for(
        0, static_cast<int64_t>(delta.size()), grain(s.head_size), [&](int64_t begin, int64_t end) {
          backward_delta<T>(data<T>(grad), data<T>(result), s.head_size, delta.data(), begin, end);
        });
    const Gradients<T, A> gradients{
        data<T>(grad),           data<A>(log_sum),        delta.data(),
        mutable_data<T>(grad_q), mutable_data<T>(grad_k), mutable_data<T>(grad_v)};
    auto units = make_units(in, [](auto& units, const auto& x, Unit unit) {
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
    for_each_unit(units, [&](auto&& next) {
      BackwardTiles<A> tile(s.head_size);
      while (const Unit* unit = next())
        with_simd([&]<class S>(S)
                      SSEPT_INLINE_LAMBDA { backward<S, T>(in, gradients, *unit, tile); });
    });
  });
  return {grad_q, grad_k, grad_v};
}

}  // namespace
}  // namespace ssept::cpu

SSEPT_LIBRARY_IMPL(CPU, m) {
  m.impl("causal_attention", TORCH_BOX(&ssept::cpu::causal_attention));
  m.impl("causal_attention_backward", TORCH_BOX(&ssept::cpu::causal_attention_backward));
}
