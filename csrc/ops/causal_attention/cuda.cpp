// `causal_attention` and `multi_head_attention` on CUDA: from tensors to launches.
#include <tuple>

#include "common/library.h"
#include "cuda/runtime.h"
#include "cuda/weight_parts.h"
#include "ops/causal_attention/args.h"
#include "ops/causal_attention/launch.h"

namespace ssept::cuda {
namespace {

// Calls f.template operator()<T, kTf32>() for the kernels of this type.
template <class F>
void dispatch_arithmetic(const CausalAttentionArgs& args, bool allow_tf32, F&& f) {
  dispatch_floating("q", args.type, [&]<class T>() {
    check(args.size.head_size <= kMaxHeadSize<T>, "the head size of q must be in 1..",
          kMaxHeadSize<T>, " for ", torch::headeronly::toString(args.type), " on CUDA, got ",
          args.size.head_size);
    check(!args.has_bias() || args.size.head_size <= kMaxBiasedHeadSize,
          "the head size of q must be in 1..", kMaxBiasedHeadSize,
          " with position_bias or time_bias on CUDA, got ", args.size.head_size);
    if constexpr (std::is_same_v<T, float>)
      if (allow_tf32) return f.template operator()<T, true>();
    f.template operator()<T, false>();
  });
}

// Launches the kernels of a backward. What a relative bias' gradients are summed from is freed as
// soon as they are queued, for what the stream does next.
template <bool kTf32, class T>
void launch_backward(const char* op, const CausalAttentionArgs& args, CausalAttentionGradients<T> g,
                     const BiasGradients& of_bias, const DeviceOf& device) {
  using A = Accumulator<T>;
  using Kernels = CausalAttentionKernels<T, kTf32>;
  const CausalAttentionWithBias<T> in = args.kernel_args<T>();
  Tensor partial;
  if (has_bias(in.bias)) {
    const int64_t columns = in.bias.num_positions + kTimeBuckets;
    partial = torch::stable::new_zeros(
        of_bias.time, {args.size.num_heads, Kernels::bias_rows(args.size), columns});
    g.bias_partial = mutable_data<A>(partial);
    of_bias.give_to(g);
  }
  check_cuda(op, Kernels::backward(in, g, device.stream()));
}

std::tuple<Tensor, Tensor> causal_attention(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens_q,
    const Tensor& cu_seqlens_k, int64_t max_seqlen_q, int64_t max_seqlen_k, double scale,
    double dropout_p, const std::optional<Tensor>& seed, int64_t site, bool allow_tf32,
    const std::optional<Tensor>& position_bias, const std::optional<Tensor>& time_bias,
    const std::optional<Tensor>& query_times, const std::optional<Tensor>& key_times) {
  CausalAttentionArgs args(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scale,
                           dropout_p, seed, site);
  args.add_bias(position_bias, time_bias, query_times, key_times);
  const CausalAttentionSizes& s = args.size;
  const DeviceOf device(q);
  const Tensor out = torch::stable::new_empty(q, {s.num_queries, s.num_heads, s.head_size});
  const Tensor lse =
      torch::stable::new_empty(q, {s.num_queries, s.num_heads}, accumulator_type(args.type));
  dispatch_arithmetic(args, allow_tf32, [&]<class T, bool kTf32>() {
    check_cuda("causal_attention",
               CausalAttentionKernels<T, kTf32>::forward(
                   args.kernel_args<T>(), {mutable_data<T>(out), mutable_data<Accumulator<T>>(lse)},
                   device.stream()));
  });
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> causal_attention_backward(
    const Tensor& grad_out, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
    const Tensor& lse, const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k, int64_t max_seqlen_q,
    int64_t max_seqlen_k, double scale, double dropout_p, const std::optional<Tensor>& seed,
    int64_t site, bool allow_tf32, const std::optional<Tensor>& position_bias,
    const std::optional<Tensor>& time_bias, const std::optional<Tensor>& query_times,
    const std::optional<Tensor>& key_times) {
  CausalAttentionArgs args(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scale,
                           dropout_p, seed, site);
  args.add_bias(position_bias, time_bias, query_times, key_times);
  const CausalAttentionSizes& s = args.size;
  const ScalarType wide = accumulator_type(args.type);
  const Tensor grad = args.contiguous_like_q("grad_out", grad_out);
  const Tensor result = args.contiguous_like_q("out", out);
  const Tensor log_sum = args.contiguous_lse(lse, wide);
  const DeviceOf device(q);
  const Tensor grad_q = torch::stable::new_empty(q, {s.num_queries, s.num_heads, s.head_size});
  const Tensor grad_k = torch::stable::new_empty(k, {s.num_keys, s.num_heads, s.head_size});
  const Tensor grad_v = torch::stable::new_empty(v, {s.num_keys, s.num_heads, s.head_size});
  const Tensor delta = torch::stable::new_empty(q, {s.num_queries, s.num_heads}, wide);
  const BiasGradients of_bias = args.bias_gradients();
  dispatch_arithmetic(args, allow_tf32, [&]<class T, bool kTf32>() {
    using A = Accumulator<T>;
    const CausalAttentionGradients<T> g{data<T>(grad),           data<T>(result),
                                        data<A>(log_sum),        mutable_data<A>(delta),
                                        mutable_data<T>(grad_q), mutable_data<T>(grad_k),
                                        mutable_data<T>(grad_v), s.num_heads * s.head_size};
    launch_backward<kTf32>("causal_attention_backward", args, g, of_bias, device);
  });
  return {grad_q, grad_k, grad_v, of_bias.position, of_bias.time};
}

// From grad_q and grad_kv on. grad_x_q has the residual's gradient already; `weights` are those of
// queries, and of keys and values.
void multiply_gradients(const Products& products, const ProjectionArgs& p,
                        const MultiHeadGradients& g, WeightParts (&weights)[2]) {
  Tensor grad_kv = g.grad_kv, of_weights = g.grad_weight;
  const Tensor grad_k = torch::stable::narrow(grad_kv, 1, 0, p.width);
  const Tensor grad_v = torch::stable::narrow(grad_kv, 1, p.width, p.width);
  if (g.residual)
    products.add_product(g.grad_x_q, g.grad_q, p.q_weight);
  else
    products.multiply(g.grad_x_q, g.grad_q, p.q_weight);
  products.multiply(g.grad_x_k, grad_k, p.k_weight);
  products.add_product(g.grad_x_k, grad_v, p.v_weight);
  weights[0].multiply(products, torch::stable::narrow(of_weights, 0, 0, p.width), g.grad_q, p.x_q);
  weights[1].multiply(products, torch::stable::narrow(of_weights, 0, p.width, 2 * p.width),
                      g.grad_kv, p.x_k);
}

struct MultiHeadAttention {
  static bool projects_keys(int64_t /*max_seqlen_q*/, double /*dropout_p*/) { return true; }

  static void forward(const ProjectionArgs& p, const CausalAttentionArgs& args,
                      const MultiHeadOutputs& to, bool allow_tf32) {
    const DeviceOf device(p.x_q);
    dispatch_arithmetic(args, allow_tf32, [&]<class T, bool kTf32>() {
      const Products& products = device.products();
      products.multiply_add(p.rows(to.q), p.x_q, transposed(p.q_weight), p.q_bias(p.type));
      products.multiply(p.rows(to.k), p.x_k, transposed(p.k_weight));
      products.multiply_add(p.rows(to.v), p.x_k, transposed(p.v_weight), p.v_bias(p.type));
      check_cuda("multi_head_attention",
                 CausalAttentionKernels<T, kTf32>::forward(
                     args.kernel_args<T>(), to.kernel_args<T>(p.x_q), device.stream()));
    });
  }

  static void backward(const ProjectionArgs& p, const CausalAttentionArgs& args,
                       const MultiHeadGradients& g, bool allow_tf32) {
    const DeviceOf device(p.x_q);
    const Tensor delta = torch::stable::new_empty(p.x_q, {args.size.num_queries, p.num_heads},
                                                  accumulator_type(p.type));
    dispatch_arithmetic(args, allow_tf32, [&]<class T, bool kTf32>() {
      using A = Accumulator<T>;
      using Kernels = CausalAttentionKernels<T, kTf32>;
      T* const grad_k = mutable_data<T>(g.grad_kv);
      const CausalAttentionGradients<T> gradients{
          data<T>(g.grad_out),
          data<T>(g.attended),
          data<A>(g.lse),
          mutable_data<A>(delta),
          mutable_data<T>(g.grad_q),
          grad_k,
          grad_k + p.width,
          2 * p.width,
          g.residual ? mutable_data<T>(g.grad_x_q) : nullptr,
          mutable_data<A>(g.grad_bias)};
      const char* op = "multi_head_attention_backward";
      launch_backward<kTf32>(op, args, gradients, g.relative_bias, device);
      WeightParts weights[2];
      multiply_gradients(device.products(), p, g, weights);
      PartsOf<A, 2> parts{};
      if constexpr (std::is_same_v<T, A>) parts = {{weights[0].sums<A>(), weights[1].sums<A>()}};
      check_cuda(op, Kernels::finish_projections(args.size, gradients, parts, device.stream()));
    });
  }
};

}  // namespace
}  // namespace ssept::cuda

SSEPT_LIBRARY_IMPL(SSEPT_CUDA_KEY, m) {
  m.impl("causal_attention", TORCH_BOX(&ssept::cuda::causal_attention));
  m.impl("causal_attention_backward", TORCH_BOX(&ssept::cuda::causal_attention_backward));
  m.impl("multi_head_attention",
         TORCH_BOX(&ssept::multi_head_attention<ssept::cuda::MultiHeadAttention>));
  m.impl("multi_head_attention_backward",
         TORCH_BOX(&ssept::multi_head_attention_backward<ssept::cuda::MultiHeadAttention>));
}
