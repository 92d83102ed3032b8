// `causal_attention` on the CPU: from tensors to units of work.
#include <tuple>
#include <vector>

#include "common/library.h"
#include "ops/causal_attention/cpu_backward.h"
#include "ops/causal_attention/cpu_forward.h"

namespace ssept::cpu {
namespace {

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
    attention::for_each_unit<attention::ForwardTiles<A>>(
        attention::forward_units(in), s.head_size, [&](const auto& unit, auto& tiles) {
          with_simd([&]<class S>(S) SSEPT_INLINE_LAMBDA {
            attention::compute_output<S>(in, unit, tiles, mutable_data<T>(out),
                                         mutable_data<A>(lse));
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
    const attention::Gradients<T, A> gradients{
        data<T>(grad),           data<A>(log_sum),        delta.data(),
        mutable_data<T>(grad_q), mutable_data<T>(grad_k), mutable_data<T>(grad_v)};
    attention::for_each_unit<attention::BackwardTiles<A>>(
        attention::backward_units(in), s.head_size, [&](const auto& unit, auto& tiles) {
          with_simd([&]<class S>(S) SSEPT_INLINE_LAMBDA {
            attention::compute_gradients<S>(in, gradients, unit, tiles);
          });
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
