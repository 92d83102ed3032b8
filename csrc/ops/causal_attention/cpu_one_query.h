// `multi_head_attention` on the CPU where no sequence has more than one query, as in the last block
// of a recommendation. Keys and values are not projected: q · (W x) is (Wᵀ q) · x, and a weighted
// sum of W x is W times that of x, so that a sequence needs products with each weight for one row,
// not for all keys. A row takes the same sums whatever else is in the batch.
#pragma once
#include "cpu/vector_ops.h"
#include "ops/causal_attention/cpu_forward.h"

namespace ssept::cpu::attention {

// (D, D) each, and the rows that they project.
template <class T>
struct OneQueryProjections {
  const T *x_q, *x_k, *q_weight, *k_weight, *v_weight;
  T* q;  // (Nq, D), written without the bias
};

template <class A>
struct OneQueryMemory {
  Buffer<A> query, absorbed, context, scores;  // (D), (D), (D), (keys)

  OneQueryMemory(int64_t width, int64_t max_keys)
      : query(whole_lines(width)),
        absorbed(whole_lines(width)),
        context(whole_lines(width)),
        scores(whole_lines(max_keys)) {}

 private:
  static int64_t whole_lines(int64_t n) {
    return (n + kMaxLanes<A> - 1) / kMaxLanes<A> * kMaxLanes<A>;
  }
};

// Scores of a head's query with all keys, as e^(score - maximum). Returns their maximum and sum.
template <class S, class T, class A = Accumulator<T>>
SSEPT_INLINE std::pair<A, A> weigh_keys(const HeadInputs<T>& x, const A* absorbed, const T* keys,
                                        int64_t width, A* scores) {
  TimeBuckets buckets;
  for (int64_t j = 0; j < x.num_keys; ++j) scores[j] = dot<S>(absorbed, keys + j * width, width);
  for (int64_t j = 0; j < x.num_keys; j += kTile)
    add_bias(x, 0, j, std::min(kTile, x.num_keys - j), scores + j, buckets);
  A maximum = -std::numeric_limits<A>::infinity(), sums[kMaxLanes<A>] = {};
  online_softmax_row<S, A>(scores, x.num_keys, S::template whole_vectors<A>(x.num_keys), nullptr, 0,
                           maximum, sums, nullptr, 0);
  return {maximum, horizontal_sum<S, A>(S::load(sums))};
}

// What the query of a sequence gets.
template <class S, class T, class A = Accumulator<T>>
SSEPT_INLINE void compute_one_query(const Inputs<T>& in, const OneQueryProjections<T>& p,
                                    int64_t sequence, OneQueryMemory<A>& memory,
                                    const CausalAttentionOutputs<T>& outputs) {
  const auto& s = in.size;
  const int64_t width = s.num_heads * s.head_size, token = in.cu_seqlens_q[sequence];
  const T* keys = p.x_k + in.cu_seqlens_k[sequence] * width;
  A *const query = memory.query.get(), *const absorbed = memory.absorbed.get();
  A *const context = memory.context.get(), *const scores = memory.scores.get();
  for (int64_t i = 0; i < width; ++i) query[i] = static_cast<A>(p.x_q[token * width + i]);
  for (int64_t i = 0; i < width; ++i) context[i] = dot<S>(query, p.q_weight + i * width, width);
  std::copy_n(context, width, query);
  for (int64_t i = 0; i < width; ++i) p.q[token * width + i] = static_cast<T>(query[i]);

  for (int64_t h = 0; h < s.num_heads; ++h) {
    const HeadInputs<T> x(in, sequence, h);
    const int64_t first = h * s.head_size;
    std::fill_n(absorbed, width, A(0));
    for (int64_t i = 0; i < s.head_size; ++i)
      add_scaled(absorbed, static_cast<A>(s.scale) * (query[first + i] + x.q_bias[i]),
                 p.k_weight + (first + i) * width, width);
    std::fill_n(context, width, A(0));
    const auto [maximum, sum] = x.num_keys == 0
                                    ? std::pair(-std::numeric_limits<A>::infinity(), A(0))
                                    : weigh_keys<S>(x, absorbed, keys, width, scores);
    for (int64_t j = 0; j < x.num_keys; ++j)
      if (scores[j] != 0) add_scaled(context, scores[j], keys + j * width, width);
    const A factor = sum == 0 ? A(0) : 1 / sum;
    for (int64_t i = 0; i < s.head_size; ++i) {
      const int64_t at = token * width + first + i;
      const A value = dot<S>(context, p.v_weight + (first + i) * width, width) + sum * x.v_bias[i];
      outputs.out[at] = static_cast<T>(factor * value);
      if (outputs.residual)
        outputs.sum[at] = static_cast<T>(factor * value + static_cast<A>(outputs.residual[at]));
    }
    outputs.lse[token * s.num_heads + h] = maximum + std::log(sum);
  }
}

template <class T>
void compute_one_query_each(const Inputs<T>& in, const OneQueryProjections<T>& p,
                            const CausalAttentionOutputs<T>& outputs) {
  const auto& s = in.size;
  const int64_t width = s.num_heads * s.head_size;
  const int64_t work = width * (3 * width + 2 * s.num_heads * s.max_seqlen_k);
  torch::stable::parallel_for(0, s.num_sequences, grain(work), [&](int64_t begin, int64_t end) {
    OneQueryMemory<Accumulator<T>> memory(width, s.max_seqlen_k);
    with_simd([&]<class S>(S) SSEPT_INLINE_LAMBDA {
      for (int64_t b = begin; b < end; ++b)
        if (in.cu_seqlens_q[b] < in.cu_seqlens_q[b + 1])
          compute_one_query<S>(in, p, b, memory, outputs);
    });
  });
}

}  // namespace ssept::cpu::attention
