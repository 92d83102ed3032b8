// CPU kernels of `causal_attention`: tiles of 32 queries and 32 keys of one sequence and head, with
// online softmax. A unit of work writes outputs of its own, so results do not depend on the number
// of threads.
#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

#include "common/causal_attention_args.h"
#include "common/library.h"
#include "cpu/tiles.h"
#include "cpu/vector_ops.h"

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

int64_t tiles(int64_t n) { return (n + kTile - 1) / kTile; }

// Part of the work of one sequence and head.
struct Unit {
  int64_t sequence, head;
  int64_t first_query, last_query;  // within the sequence; last is one past the end
  int64_t first_key, last_key;
  bool wants_query_gradient, wants_key_gradient;

  int64_t cost() const { return (last_query - first_query) * (last_key - first_key); }
};

// Runs f(unit) for all units, the costly first, on all of torch's threads.
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

template <class A>
struct ForwardTiles {
  Buffer<A> q, k, k_transposed, v, scores, out, maximum, sum;

  explicit ForwardTiles(int64_t head_size)
      : q(kQueryChunk * padded<A>(head_size)),
        k(kTile * padded<A>(head_size)),
        k_transposed(kTile * head_size),
        v(kTile * padded<A>(head_size)),
        scores(kTile * kTile),
        out(kQueryChunk * padded<A>(head_size)),
        maximum(kQueryChunk),
        sum(kQueryChunk) {}
};

// Turns a row of scores into e^(score - maximum so far) and rescales what was summed with an older
// maximum.
template <class A>
SSEPT_INLINE void online_softmax_row(A* scores, int64_t visible, A& maximum, A& sum, A* out,
                                     int64_t width) {
  for (int64_t j = visible; j < kTile; ++j) scores[j] = -std::numeric_limits<A>::infinity();
  Vec<A> largest = vec(scores);
  for (int64_t j = kLanes<A>; j < kTile; j += kLanes<A>)
    largest = largest > vec(scores + j) ? largest : vec(scores + j);
  const A new_maximum = std::max(maximum, horizontal_max<A>(largest));
  Vec<A> total{};
  for (int64_t j = 0; j < kTile; j += kLanes<A>) {
    vec(scores + j) = exponential<A>(vec(scores + j) - new_maximum);
    total += vec(scores + j);
  }
  const A correction = std::exp(maximum - new_maximum);
  sum = sum * correction + horizontal_sum<A>(total);
  if (correction != 1)
    for (int64_t i = 0; i < width; i += kLanes<A>) vec(out + i) *= correction;
  maximum = new_maximum;
}

template <class T, class A = Accumulator<T>>
SSEPT_SIMD_CLONES void forward(const CausalAttention<T>& in, const Unit& unit,
                               ForwardTiles<A>& tile, T* out, A* lse) {
  const auto& s = in.size;
  const HeadOf<T> x(in, unit.sequence, unit.head);
  const int64_t width = padded<A>(s.head_size);
  const int64_t rows = unit.last_query - unit.first_query;
  pack_rows(x.q + unit.first_query * x.row, x.row, rows, s.head_size, static_cast<A>(s.scale),
            tiles(rows) * kTile, tile.q.get());
  std::fill_n(tile.out.get(), tiles(rows) * kTile * width, A(0));
  std::fill_n(tile.maximum.get(), rows, -std::numeric_limits<A>::infinity());
  std::fill_n(tile.sum.get(), rows, A(0));

  for (int64_t k0 = 0; k0 < unit.last_key; k0 += kTile) {
    const int64_t keys = std::min(kTile, x.num_keys - k0);
    pack_rows(x.k + k0 * x.row, x.row, keys, s.head_size, A(1), kTile, tile.k.get());
    transpose(tile.k.get(), s.head_size, kTile, tile.k_transposed.get());
    pack_rows(x.v + k0 * x.row, x.row, keys, s.head_size, A(1), kTile, tile.v.get());
    const int64_t first = clamp(x.first_query_seeing(k0) - unit.first_query, 0, rows);
    for (int64_t r0 = first / kTile * kTile; r0 < rows; r0 += kTile) {
      const int64_t tile_rows = std::min(kTile, rows - r0);
      std::fill_n(tile.scores.get(), kTile * kTile, A(0));
      multiply_add<A>(tile_rows, kTile, s.head_size, tile.q + r0 * width, width, 1,
                      tile.k_transposed.get(), kTile, tile.scores.get(), kTile);
      for (int64_t r = 0; r < tile_rows; ++r) {
        const int64_t query = unit.first_query + r0 + r;
        const int64_t visible = clamp(x.visible(query, k0), 0, keys);
        A* scores = tile.scores + r * kTile;
        if (visible == 0) {
          std::fill_n(scores, kTile, A(0));
          continue;
        }
        online_softmax_row<A>(scores, visible, tile.maximum.get()[r0 + r], tile.sum.get()[r0 + r],
                              tile.out + (r0 + r) * width, width);
        if (in.seed)
          drop<kTile / 4>(scores, visible, in.dropout, *in.seed,
                          (x.query_start + query) * s.num_heads + unit.head, k0);
      }
      multiply_add<A>(tile_rows, width, kTile, tile.scores.get(), kTile, 1, tile.v.get(), width,
                      tile.out + r0 * width, width);
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
  Buffer<A> q, grad_out, k, k_transposed, v, v_transposed;
  Buffer<A> weights, grad_weights, keep;
  Buffer<A> grad_q, grad_k, grad_v;

  explicit BackwardTiles(int64_t head_size)
      : q(kTile * padded<A>(head_size)),
        grad_out(kTile * padded<A>(head_size)),
        k(kTile * padded<A>(head_size)),
        k_transposed(kTile * head_size),
        v(kTile * padded<A>(head_size)),
        v_transposed(kTile * head_size),
        weights(kTile * kTile),
        grad_weights(kTile * kTile),
        keep(kTile),
        grad_q(kWholeBackward * padded<A>(head_size)),
        grad_k(kTile * padded<A>(head_size)),
        grad_v(kTile * padded<A>(head_size)) {}
};

template <class T, class A>
SSEPT_INLINE void unpack_rows(const A* tile, int64_t rows, int64_t width, A scale, T* x,
                              int64_t x_row) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < width; ++i)
      x[r * x_row + i] = static_cast<T>(scale * tile[r * padded<A>(width) + i]);
}

// From a row of scores and of the gradient of its weights after dropout, to the weights after
// dropout and the gradient of the scores.
template <class A>
SSEPT_INLINE void softmax_backward_row(A* weights, A* grad_weights, const A* keep, int64_t visible,
                                       A lse, A delta) {
  for (int64_t j = visible; j < kTile; ++j) weights[j] = -std::numeric_limits<A>::infinity();
  for (int64_t j = 0; j < kTile; j += kLanes<A>) {
    const Vec<A> weight = exponential<A>(vec(weights + j) - lse);
    vec(grad_weights + j) = weight * (vec(grad_weights + j) * vec(keep + j) - delta);
    vec(weights + j) = weight * vec(keep + j);
  }
}

template <class T, class A = Accumulator<T>>
SSEPT_SIMD_CLONES void backward(const CausalAttention<T>& in, const Gradients<T, A>& g,
                                const Unit& unit, BackwardTiles<A>& tile) {
  const auto& s = in.size;
  const HeadOf<T> x(in, unit.sequence, unit.head);
  const int64_t width = padded<A>(s.head_size);
  const int64_t head_offset = unit.head * s.head_size;
  const A kept = in.seed ? static_cast<A>(in.dropout.scale) : A(1);
  if (unit.wants_query_gradient)
    std::fill_n(tile.grad_q.get(), tiles(unit.last_query - unit.first_query) * kTile * width, A(0));
  std::fill_n(tile.keep.get(), kTile, A(1));

  for (int64_t k0 = unit.first_key; k0 < unit.last_key; k0 += kTile) {
    const int64_t keys = std::min(kTile, x.num_keys - k0);
    pack_rows(x.k + k0 * x.row, x.row, keys, s.head_size, A(1), kTile, tile.k.get());
    transpose(tile.k.get(), s.head_size, kTile, tile.k_transposed.get());
    pack_rows(x.v + k0 * x.row, x.row, keys, s.head_size, A(1), kTile, tile.v.get());
    transpose(tile.v.get(), s.head_size, kTile, tile.v_transposed.get());
    std::fill_n(tile.grad_k.get(), kTile * width, A(0));
    std::fill_n(tile.grad_v.get(), kTile * width, A(0));

    const int64_t first = std::max(unit.first_query, x.first_query_seeing(k0)) - unit.first_query;
    for (int64_t r0 = first / kTile * kTile; r0 < unit.last_query - unit.first_query; r0 += kTile) {
      const int64_t q0 = unit.first_query + r0;
      const int64_t rows = std::min(kTile, unit.last_query - q0);
      const int64_t token = x.query_start + q0;
      pack_rows(x.q + q0 * x.row, x.row, rows, s.head_size, static_cast<A>(s.scale), kTile,
                tile.q.get());
      pack_rows(g.grad_out + token * x.row + head_offset, x.row, rows, s.head_size, A(1), kTile,
                tile.grad_out.get());
      std::fill_n(tile.weights.get(), kTile * kTile, A(0));
      std::fill_n(tile.grad_weights.get(), kTile * kTile, A(0));
      multiply_add<A>(rows, kTile, s.head_size, tile.q.get(), width, 1, tile.k_transposed.get(),
                      kTile, tile.weights.get(), kTile);
      multiply_add<A>(rows, kTile, s.head_size, tile.grad_out.get(), width, 1,
                      tile.v_transposed.get(), kTile, tile.grad_weights.get(), kTile);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t entry = (token + r) * s.num_heads + unit.head;
        const int64_t visible = clamp(x.visible(q0 + r, k0), 0, keys);
        if (visible == 0) {
          std::fill_n(tile.weights + r * kTile, kTile, A(0));
          std::fill_n(tile.grad_weights + r * kTile, kTile, A(0));
          continue;
        }
        if (in.seed) {
          std::fill_n(tile.keep.get(), kTile, kept);
          drop<kTile / 4>(tile.keep.get(), kTile, in.dropout, *in.seed, entry, k0);
        }
        softmax_backward_row<A>(tile.weights + r * kTile, tile.grad_weights + r * kTile,
                                tile.keep.get(), visible, g.lse[entry], g.delta[entry]);
      }
      if (unit.wants_key_gradient) {
        multiply_add<A>(kTile, width, rows, tile.weights.get(), 1, kTile, tile.grad_out.get(),
                        width, tile.grad_v.get(), width);
        multiply_add<A>(kTile, width, rows, tile.grad_weights.get(), 1, kTile, tile.q.get(), width,
                        tile.grad_k.get(), width);
      }
      if (unit.wants_query_gradient)
        multiply_add<A>(rows, width, kTile, tile.grad_weights.get(), kTile, 1, tile.k.get(), width,
                        tile.grad_q + r0 * width, width);
    }
    if (unit.wants_key_gradient) {
      const int64_t offset = (x.key_start + k0) * x.row + head_offset;
      unpack_rows(tile.grad_k.get(), keys, s.head_size, A(1), g.grad_k + offset, x.row);
      unpack_rows(tile.grad_v.get(), keys, s.head_size, A(1), g.grad_v + offset, x.row);
    }
  }
  if (unit.wants_query_gradient)
    unpack_rows(tile.grad_q.get(), unit.last_query - unit.first_query, s.head_size,
                static_cast<A>(s.scale),
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

// Units for all sequences and heads; add(sequence's lengths, unit) appends those of one.
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
        forward<T>(in, *unit, tile, mutable_data<T>(out), mutable_data<A>(lse));
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
      while (const Unit* unit = next()) backward<T>(in, gradients, *unit, tile);
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
