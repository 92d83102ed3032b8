// `causal_attention` and `multi_head_attention` on the CPU: from tensors to units of work.
#include <tuple>
#include <vector>

#include "common/library.h"
#include "ops/causal_attention/cpu_backward.h"
#include "ops/causal_attention/cpu_forward.h"
#include "ops/causal_attention/cpu_one_query.h"
#include "ops/causal_attention/cpu_projections.h"

namespace ssept::cpu {
namespace {

// delta of each query and head: what every weight's gradient has in common.
template <class S, class T, class A = Accumulator<T>>
SSEPT_INLINE void backward_delta(const CausalAttentionGradients<T>& g, int64_t head_size,
                                 int64_t begin, int64_t end) {
  for (int64_t e = begin; e < end; ++e)
    g.delta[e] = dot<S>(g.grad_out + e * head_size, g.out + e * head_size, head_size);
}

template <class T>
void check_all_offsets(const attention::Inputs<T>& in) {
  const auto& s = in.size;
  const auto check_side = [&](const char* name, const int32_t* offsets, int64_t tokens,
                              int64_t max_seqlen) {
    check_offsets(name, offsets, s.num_sequences, tokens);
    check_longest(name, offsets, s.num_sequences, max_seqlen);
  };
  check_side("cu_seqlens_q", in.cu_seqlens_q, s.num_queries, s.max_seqlen_q);
  check_side("cu_seqlens_k", in.cu_seqlens_k, s.num_keys, s.max_seqlen_k);
}

template <class T>
void compute_outputs(const attention::Inputs<T>& in, const CausalAttentionOutputs<T>& outputs) {
  using A = Accumulator<T>;
  auto units = attention::forward_units(in);
  attention::for_each_unit<attention::ForwardTiles<A>>(
      units, in.size.head_size, [&](const auto& unit, auto& tiles) {
        with_simd<T>([&]<class S>(S) SSEPT_INLINE_LAMBDA {
          attention::compute_output<S>(in, unit, tiles, outputs);
        });
      });
}

template <class T>
void compute_all_gradients(const attention::Inputs<T>& in, CausalAttentionGradients<T> g,
                           const BiasGradients& of_bias) {
  using A = Accumulator<T>;
  for (const Tensor& x : {of_bias.position, of_bias.time}) zero_rows_from(x, 0);
  of_bias.give_to(g);
  const CausalAttentionSizes& s = in.size;
  const int64_t real = in.cu_seqlens_q[s.num_sequences] * s.num_heads;
  std::vector<A> delta(real);
  g.delta = delta.data();
  torch::stable::parallel_for(0, real, grain(s.head_size), [&](int64_t begin, int64_t end) {
    with_simd<T>([&]<class S>(S)
                     SSEPT_INLINE_LAMBDA { backward_delta<S>(g, s.head_size, begin, end); });
  });

  auto units = attention::backward_units(in);
  const bool relative = g.grad_position || g.grad_time;
  const int64_t width = g.grad_bias ? s.head_size : 0, positions = in.bias.num_positions;
  const int64_t row = 2 * width + (relative ? positions + kTimeBuckets : 0);
  std::vector<A> sums(units.size() * row);  // of each unit: the number of threads is no matter
  attention::for_each_unit<attention::BackwardTiles<A>>(
      units, s.head_size, [&](const auto& unit, auto& tiles) {
        A* const own = sums.data() + (&unit - units.data()) * row;
        const attention::UnitSums<A> unit_sums{width ? own : nullptr,
                                               relative ? own + 2 * width : nullptr};
        with_simd<T>([&]<class S>(S) SSEPT_INLINE_LAMBDA {
          attention::compute_gradients<S>(in, g, unit, tiles, unit_sums);
        });
      });
  const auto add = [](A* to, const A* from, int64_t count) {
    for (int64_t i = 0; to && i < count; ++i) to[i] += from[i];
  };
  for (size_t u = 0; u < units.size(); ++u) {
    const int64_t h = units[u].head;
    const A* from = sums.data() + u * row;
    A* const grad_bias = width ? g.grad_bias + h * width : nullptr;
    add(grad_bias, from, width);
    add(grad_bias ? grad_bias + 2 * s.num_heads * width : nullptr, from + width, width);
    from += 2 * width;
    add(g.grad_position ? g.grad_position + h * positions : nullptr, from, positions);
    add(g.grad_time ? g.grad_time + h * kTimeBuckets : nullptr, from + positions, kTimeBuckets);
  }
}

std::tuple<Tensor, Tensor> causal_attention(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens_q,
    const Tensor& cu_seqlens_k, int64_t max_seqlen_q, int64_t max_seqlen_k, double scale,
    double dropout_p, const std::optional<Tensor>& seed, int64_t site, bool /*allow_tf32*/,
    const std::optional<Tensor>& position_bias, const std::optional<Tensor>& time_bias,
    const std::optional<Tensor>& query_times, const std::optional<Tensor>& key_times) {
  CausalAttentionArgs args(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scale,
                           dropout_p, seed, site);
  args.add_bias(position_bias, time_bias, query_times, key_times);
  const auto& s = args.size;
  const Tensor out = torch::stable::new_empty(q, {s.num_queries, s.num_heads, s.head_size});
  const Tensor lse =
      torch::stable::new_empty(q, {s.num_queries, s.num_heads}, accumulator_type(args.type));
  dispatch_floating("q", args.type, [&]<class T>() {
    using A = Accumulator<T>;
    const attention::Inputs<T> in{args.kernel_args<T>()};
    check_all_offsets(in);
    zero_rows_from(out, in.cu_seqlens_q[s.num_sequences]);
    zero_rows_from(lse, in.cu_seqlens_q[s.num_sequences]);
    compute_outputs<T>(in, {mutable_data<T>(out), mutable_data<A>(lse)});
  });
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> causal_attention_backward(
    const Tensor& grad_out, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
    const Tensor& lse, const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k, int64_t max_seqlen_q,
    int64_t max_seqlen_k, double scale, double dropout_p, const std::optional<Tensor>& seed,
    int64_t site, bool /*allow_tf32*/, const std::optional<Tensor>& position_bias,
    const std::optional<Tensor>& time_bias, const std::optional<Tensor>& query_times,
    const std::optional<Tensor>& key_times) {
  CausalAttentionArgs args(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scale,
                           dropout_p, seed, site);
  args.add_bias(position_bias, time_bias, query_times, key_times);
  const auto& s = args.size;
  const Tensor grad = args.contiguous_like_q("grad_out", grad_out);
  const Tensor result = args.contiguous_like_q("out", out);
  const Tensor log_sum = args.contiguous_lse(lse, accumulator_type(args.type));
  const Tensor grad_q = torch::stable::new_empty(q, {s.num_queries, s.num_heads, s.head_size});
  const Tensor grad_k = torch::stable::new_empty(k, {s.num_keys, s.num_heads, s.head_size});
  const Tensor grad_v = torch::stable::new_empty(v, {s.num_keys, s.num_heads, s.head_size});
  const BiasGradients of_bias = args.bias_gradients();
  dispatch_floating("q", args.type, [&]<class T>() {
    using A = Accumulator<T>;
    const attention::Inputs<T> in{args.kernel_args<T>()};
    check_all_offsets(in);
    zero_rows_from(grad_q, in.cu_seqlens_q[s.num_sequences]);
    zero_rows_from(grad_k, in.cu_seqlens_k[s.num_sequences]);
    zero_rows_from(grad_v, in.cu_seqlens_k[s.num_sequences]);
    compute_all_gradients<T>(
        in,
        {data<T>(grad), data<T>(result), data<A>(log_sum), nullptr, mutable_data<T>(grad_q),
         mutable_data<T>(grad_k), mutable_data<T>(grad_v), s.num_heads * s.head_size},
        of_bias);
  });
  return {grad_q, grad_k, grad_v, of_bias.position, of_bias.time};
}

// q and v stay without their biases, which the kernels add as they read them.
struct MultiHeadAttention {
  // Calls f with the inputs of the kernels.
  template <class F>
  static void dispatch(const ProjectionArgs& p, const CausalAttentionArgs& args, F&& f) {
    const ScalarType wide = accumulator_type(p.type);
    const Tensor q_bias = p.q_bias(wide), v_bias = p.v_bias(wide);
    dispatch_floating("x_q", p.type, [&]<class T>() {
      using A = Accumulator<T>;
      const attention::Inputs<T> in{args.kernel_args<T>(), data<A>(q_bias), data<A>(v_bias)};
      check_all_offsets(in);
      f.template operator()<T, A>(in);
    });
  }

  // Whether the forward makes keys and values, or what it is asked for needs none.
  static bool projects_keys(int64_t max_seqlen_q, double dropout_p) {
    return max_seqlen_q != 1 || dropout_p > 0;
  }

  static void forward(const ProjectionArgs& p, const CausalAttentionArgs& args,
                      const MultiHeadOutputs& to, bool /*allow_tf32*/) {
    dispatch(p, args, [&]<class T, class A>(const attention::Inputs<T>& in) {
      const int64_t real = in.cu_seqlens_q[in.size.num_sequences];
      for (const Tensor& x : {to.out, to.attended, to.lse}) zero_rows_from(x, real);
      const auto outputs = to.kernel_args<T>(p.x_q);
      if (to.k.size(0) != p.x_k.size(0)) {
        zero_rows_from(to.q, real);
        return attention::compute_one_query_each<T>(
            in,
            {data<T>(p.x_q), data<T>(p.x_k), data<T>(p.q_weight), data<T>(p.k_weight),
             data<T>(p.v_weight), mutable_data<T>(to.q)},
            outputs);
      }
      project(p.x_q, data<T>(p.q_weight), {to.q});
      project(p.x_k, stacked<T>(p.k_weight, p.v_weight).data(), {to.k, to.v});
      compute_outputs<T>(in, outputs);
    });
  }

  static void backward(const ProjectionArgs& p, const CausalAttentionArgs& args,
                       const MultiHeadGradients& g, bool /*allow_tf32*/) {
    dispatch(p, args, [&]<class T, class A>(const attention::Inputs<T>& in) {
      const int64_t real = in.cu_seqlens_q[in.size.num_sequences];
      zero_rows_from(g.grad_q, real);
      zero_rows_from(g.grad_kv, in.cu_seqlens_k[in.size.num_sequences]);
      zero_rows_from(g.grad_bias, 0);
      T* const grad_k = mutable_data<T>(g.grad_kv);
      compute_all_gradients<T>(in,
                               {data<T>(g.grad_out), data<T>(g.attended), data<A>(g.lse), nullptr,
                                mutable_data<T>(g.grad_q), grad_k, grad_k + p.width, 2 * p.width,
                                nullptr, mutable_data<A>(g.grad_bias)},
                               g.relative_bias);
      multiply_gradients<T>(p, g, g.residual ? real : 0);
    });
  }
};

}  // namespace
}  // namespace ssept::cpu

SSEPT_LIBRARY_IMPL(CPU, m) {
  m.impl("causal_attention", TORCH_BOX(&ssept::cpu::causal_attention));
  m.impl("causal_attention_backward", TORCH_BOX(&ssept::cpu::causal_attention_backward));
  m.impl("multi_head_attention",
         TORCH_BOX(&ssept::multi_head_attention<ssept::cpu::MultiHeadAttention>));
  m.impl("multi_head_attention_backward",
         TORCH_BOX(&ssept::multi_head_attention_backward<ssept::cpu::MultiHeadAttention>));
}
