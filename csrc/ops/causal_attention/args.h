// From the tensors of a `causal_attention` or `multi_head_attention` call to checked, contiguous
// arguments for the kernels.
#pragma once
#include <algorithm>
#include <cmath>
#include <tuple>

#include "common/dtype.h"
#include "ops/causal_attention/params.h"

namespace ssept {

// Like position_bias and time_bias, without rows where there is none.
struct BiasGradients {
  Tensor position, time;

  template <class T, class A = Accumulator<T>>
  void give_to(CausalAttentionGradients<T>& g) const {
    if (position.size(0) > 0) g.grad_position = mutable_data<A>(position);
    if (time.size(0) > 0) g.grad_time = mutable_data<A>(time);
  }
};

class CausalAttentionArgs {
 public:
  CausalAttentionSizes size{};
  ScalarType type;

  CausalAttentionArgs(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens_q,
                      const Tensor& cu_seqlens_k, int64_t max_seqlen_q, int64_t max_seqlen_k,
                      double scale, double dropout_p, const std::optional<Tensor>& seed,
                      int64_t site)
      : type(q.scalar_type()), dropout_(check_dropout(dropout_p, seed, site)) {
    check_devices({{"q", &q},
                   {"k", &k},
                   {"v", &v},
                   {"cu_seqlens_q", &cu_seqlens_q},
                   {"cu_seqlens_k", &cu_seqlens_k},
                   {"seed", dropout_p > 0 ? pointer(seed) : nullptr}});
    q_ = contiguous("q", q, {kAnySize, kAnySize, kAnySize}, type);
    k_ = contiguous("k", k, {kAnySize, q.size(1), q.size(2)}, type);
    v_ = contiguous("v", v, {k.size(0), q.size(1), q.size(2)}, type);
    cu_seqlens_q_ = contiguous_cu_seqlens("cu_seqlens_q", cu_seqlens_q);
    cu_seqlens_k_ = contiguous_cu_seqlens("cu_seqlens_k", cu_seqlens_k);
    check(max_seqlen_q >= 0, "max_seqlen_q must be at least 0, got ", max_seqlen_q);
    check(max_seqlen_k >= 0, "max_seqlen_k must be at least 0, got ", max_seqlen_k);
    check(std::isfinite(scale), "scale must be finite, got ", scale);
    size = {q.size(0),
            k.size(0),
            cu_seqlens_q.size(0) - 1,
            q.size(1),
            q.size(2),
            std::min(max_seqlen_q, q.size(0)),
            std::min(max_seqlen_k, k.size(0)),
            scale};
    check(size.head_size >= 1 && size.head_size <= 256,
          "the head size of q must be in 1..256, got ", size.head_size);
    check_size("cu_seqlens_k", cu_seqlens_k, 0, size.num_sequences + 1);
  }

  // Adds a relative bias.
  void add_bias(const std::optional<Tensor>& position, const std::optional<Tensor>& time,
                const std::optional<Tensor>& query_times, const std::optional<Tensor>& key_times) {
    check_devices({{"q", &q_},
                   {"position_bias", pointer(position)},
                   {"time_bias", pointer(time)},
                   {"query_times", pointer(query_times)},
                   {"key_times", pointer(key_times)}});
    const ScalarType wide = accumulator_type(type);
    if (position) {
      position_ = contiguous("position_bias", *position, {size.num_heads, kAnySize}, wide);
      check(position->size(1) >= size.max_seqlen_k, "position_bias must have at least ",
            size.max_seqlen_k, " columns, one for each distance, got shape ", Shape(*position));
    }
    check(time.has_value() == query_times.has_value() && time.has_value() == key_times.has_value(),
          "time_bias, query_times and key_times must be given together");
    if (!time) return;
    time_ = contiguous("time_bias", *time, {size.num_heads, kTimeBuckets}, wide);
    query_times_ = contiguous("query_times", *query_times, {size.num_queries}, ScalarType::Long);
    key_times_ = contiguous("key_times", *key_times, {size.num_keys}, ScalarType::Long);
  }

  bool has_bias() const { return position_ || time_; }

  BiasGradients bias_gradients() const {
    const auto like = [&](const std::optional<Tensor>& x, int64_t columns) {
      return torch::stable::new_empty(q_, {x ? size.num_heads : 0, columns},
                                      accumulator_type(type));
    };
    return {like(position_, position_ ? position_->size(1) : 0), like(time_, kTimeBuckets)};
  }

  // Valid while this object lives. T must have the size and layout of `type`.
  template <class T>
  CausalAttentionWithBias<T> kernel_args() const {
    using A = Accumulator<T>;
    return {{data<T>(q_), data<T>(k_), data<T>(v_), data<int32_t>(cu_seqlens_q_),
             data<int32_t>(cu_seqlens_k_), dropout_, size},
            {data<A>(position_), data<A>(time_), data<int64_t>(query_times_),
             data<int64_t>(key_times_), position_ ? position_->size(1) : 0}};
  }

  // A tensor with one row for each query, such as the output or its gradient, checked and
  // contiguous.
  Tensor contiguous_like_q(const char* name, const Tensor& x) const {
    check_devices({{"q", &q_}, {name, &x}});
    return contiguous(name, x, {size.num_queries, size.num_heads, size.head_size}, type);
  }

  Tensor contiguous_lse(const Tensor& lse, ScalarType lse_type) const {
    check_devices({{"q", &q_}, {"lse", &lse}});
    return contiguous("lse", lse, {size.num_queries, size.num_heads}, lse_type);
  }

 private:
  Tensor q_, k_, v_, cu_seqlens_q_, cu_seqlens_k_;
  std::optional<Tensor> position_, time_, query_times_, key_times_;
  DropoutSite dropout_;
};

// What `multi_head_attention` makes queries, keys and values of: checked and contiguous, in the
// type of x_q. All scores of a query have the keys' bias in common, which softmax therefore does
// not see.
class ProjectionArgs {
 public:
  ScalarType type;
  int64_t num_heads, width, head_size;
  Tensor x_q, x_k, q_weight, k_weight, v_weight;

  ProjectionArgs(const Tensor& x_q, const Tensor& x_k, const Tensor& q_weight, const Tensor& q_bias,
                 const Tensor& k_weight, const Tensor& k_bias, const Tensor& v_weight,
                 const Tensor& v_bias, int64_t num_heads)
      : type(x_q.scalar_type()), num_heads(num_heads) {
    check_devices({{"x_q", &x_q},
                   {"x_k", &x_k},
                   {"q_weight", &q_weight},
                   {"q_bias", &q_bias},
                   {"k_weight", &k_weight},
                   {"k_bias", &k_bias},
                   {"v_weight", &v_weight},
                   {"v_bias", &v_bias}});
    dispatch_floating<float, float>("x_q", type, []<class T>() {});
    this->x_q = contiguous("x_q", x_q, {kAnySize, kAnySize}, type);
    width = x_q.size(1);
    this->x_k = contiguous("x_k", x_k, {kAnySize, width}, type);
    check(num_heads >= 1 && width % num_heads == 0 && width > 0,
          "num_heads must divide the width of x_q, ", width, ", got ", num_heads);
    head_size = width / num_heads;
    this->q_weight = parameter("q_weight", q_weight, {width, width}, type);
    this->k_weight = parameter("k_weight", k_weight, {width, width}, type);
    this->v_weight = parameter("v_weight", v_weight, {width, width}, type);
    parameter("k_bias", k_bias, {width}, k_bias.scalar_type());
    q_bias_ = parameter("q_bias", q_bias, {width}, q_bias.scalar_type());
    v_bias_ = parameter("v_bias", v_bias, {width}, v_bias.scalar_type());
  }

  Tensor q_bias(ScalarType as) const { return as_type(q_bias_, as); }
  Tensor v_bias(ScalarType as) const { return as_type(v_bias_, as); }

  // A tensor like queries, keys or values for all tokens of x; one for no token; x itself as one;
  // such a tensor as a matrix.
  Tensor heads(const Tensor& x) const {
    return torch::stable::new_empty(x, {x.size(0), num_heads, head_size});
  }
  Tensor no_heads() const { return torch::stable::new_empty(x_k, {0, num_heads, head_size}); }
  Tensor as_heads(const Tensor& x) const {
    return torch::stable::view(x, {x.size(0), num_heads, head_size});
  }
  Tensor rows(const Tensor& heads) const {
    return torch::stable::view(heads, {heads.size(0), width});
  }

 private:
  Tensor parameter(const char* name, const Tensor& x, std::initializer_list<int64_t> sizes,
                   ScalarType as) const {
    check(x.scalar_type() == type || x.scalar_type() == ScalarType::Float, name, " must be ",
          torch::headeronly::toString(type), " or Float, got ",
          torch::headeronly::toString(x.scalar_type()));
    return as_type(contiguous(name, x, sizes, x.scalar_type()), as);
  }

  Tensor q_bias_, v_bias_;
};

// What the forward of `multi_head_attention` writes. Without a residual, `attended` has no rows, as
// it would be `out`. Keys and values that are not projected have none either.
struct MultiHeadOutputs {
  Tensor out, attended, lse, q, k, v;
  bool residual;

  // Valid while this object lives; x_q is the residual.
  template <class T>
  CausalAttentionOutputs<T> kernel_args(const Tensor& x_q) const {
    using A = Accumulator<T>;
    if (!residual) return {mutable_data<T>(out), mutable_data<A>(lse)};
    return {mutable_data<T>(attended), mutable_data<A>(lse), data<T>(x_q), mutable_data<T>(out)};
  }
};

// What its backward reads and writes. grad_kv has the gradients of a token's key and value side by
// side, so that one product makes those of both weights.
struct MultiHeadGradients {
  Tensor grad_out, attended, lse, grad_q, grad_kv, grad_x_q, grad_x_k, grad_weight, grad_bias;
  BiasGradients relative_bias;
  bool residual;
};

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> multi_head_attention(
    const Tensor& x_q, const Tensor& x_k, const Tensor& q_weight, const Tensor& q_bias,
    const Tensor& k_weight, const Tensor& k_bias, const Tensor& v_weight, const Tensor& v_bias,
    const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k, int64_t max_seqlen_q,
    int64_t max_seqlen_k, int64_t num_heads, double scale, double dropout_p,
    const std::optional<Tensor>& seed, int64_t site, bool residual, bool allow_tf32,
    const std::optional<Tensor>& position_bias, const std::optional<Tensor>& time_bias,
    const std::optional<Tensor>& query_times, const std::optional<Tensor>& key_times) {
  const ProjectionArgs p(x_q, x_k, q_weight, q_bias, k_weight, k_bias, v_weight, v_bias, num_heads);
  const bool projects = Device::projects_keys(max_seqlen_q, dropout_p);
  const auto keys = [&] { return projects ? p.heads(p.x_k) : p.no_heads(); };
  const Tensor q = p.heads(p.x_q), k = keys(), v = keys();
  const Tensor read = projects ? k : p.as_heads(p.x_k);
  CausalAttentionArgs args(q, read, projects ? v : read, cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
                           max_seqlen_k, scale, dropout_p, seed, site);
  args.add_bias(position_bias, time_bias, query_times, key_times);
  const Tensor out = torch::stable::new_empty(p.x_q, {x_q.size(0), p.width});
  const Tensor attended =
      torch::stable::new_empty(p.x_q, {residual ? x_q.size(0) : 0, p.num_heads, p.head_size});
  const Tensor lse =
      torch::stable::new_empty(p.x_q, {x_q.size(0), num_heads}, accumulator_type(p.type));
  Device::forward(p, args, {out, attended, lse, q, k, v, residual}, allow_tf32);
  return {out, attended, lse, q, k, v};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> multi_head_attention_backward(
    const Tensor& grad_out, const Tensor& x_q, const Tensor& x_k, const Tensor& q_weight,
    const Tensor& q_bias, const Tensor& k_weight, const Tensor& k_bias, const Tensor& v_weight,
    const Tensor& v_bias, const Tensor& attended, const Tensor& lse, const Tensor& q,
    const Tensor& k, const Tensor& v, const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k,
    int64_t max_seqlen_q, int64_t max_seqlen_k, int64_t num_heads, double scale, double dropout_p,
    const std::optional<Tensor>& seed, int64_t site, bool residual, bool allow_tf32,
    const std::optional<Tensor>& position_bias, const std::optional<Tensor>& time_bias,
    const std::optional<Tensor>& query_times, const std::optional<Tensor>& key_times) {
  const ProjectionArgs p(x_q, x_k, q_weight, q_bias, k_weight, k_bias, v_weight, v_bias, num_heads);
  if (k.size(0) != x_k.size(0)) {  // the forward has made no keys: again, for more queries
    const auto [out, of_attended, of_lse, of_q, of_k, of_v] = multi_head_attention<Device>(
        x_q, x_k, q_weight, q_bias, k_weight, k_bias, v_weight, v_bias, cu_seqlens_q, cu_seqlens_k,
        max_seqlen_q + 1, max_seqlen_k, num_heads, scale, dropout_p, seed, site, residual,
        allow_tf32, position_bias, time_bias, query_times, key_times);
    return multi_head_attention_backward<Device>(
        grad_out, x_q, x_k, q_weight, q_bias, k_weight, k_bias, v_weight, v_bias,
        residual ? of_attended : p.as_heads(out), of_lse, of_q, of_k, of_v, cu_seqlens_q,
        cu_seqlens_k, max_seqlen_q, max_seqlen_k, num_heads, scale, dropout_p, seed, site, residual,
        allow_tf32, position_bias, time_bias, query_times, key_times);
  }
  CausalAttentionArgs args(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scale,
                           dropout_p, seed, site);
  args.add_bias(position_bias, time_bias, query_times, key_times);
  const ScalarType wide = accumulator_type(p.type);
  const MultiHeadGradients g{contiguous("grad_out", grad_out, {x_q.size(0), p.width}, p.type),
                             args.contiguous_like_q("attended", attended),
                             args.contiguous_lse(lse, wide),
                             torch::stable::new_empty(p.x_q, {x_q.size(0), p.width}),
                             torch::stable::new_empty(p.x_k, {x_k.size(0), 2 * p.width}),
                             torch::stable::new_empty(p.x_q, {x_q.size(0), p.width}),
                             torch::stable::new_empty(p.x_k, {x_k.size(0), p.width}),
                             torch::stable::new_empty(p.x_q, {3 * p.width, p.width}),
                             torch::stable::new_empty(p.x_q, {3, p.width}, wide),
                             args.bias_gradients(),
                             residual};
  Device::backward(p, args, g, allow_tf32);
  return {g.grad_x_q,          g.grad_x_k, g.grad_weight, g.grad_bias, g.relative_bias.position,
          g.relative_bias.time};
}

}  // namespace ssept
