// From the tensors of a `causal_attention` call to checked, contiguous arguments for its kernels.
#pragma once
#include "common/dropout_args.h"
#include "ops/causal_attention/params.h"

namespace ssept {

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
    check_dims("q", q, 3);
    check_dims("k", k, 3);
    check_dims("v", v, 3);
    check_cu_seqlens("cu_seqlens_q", cu_seqlens_q);
    check_cu_seqlens("cu_seqlens_k", cu_seqlens_k);
    size = {q.size(0),    k.size(0), cu_seqlens_q.size(0) - 1, q.size(1), q.size(2), max_seqlen_q,
            max_seqlen_k, scale};
    check(size.head_size >= 1 && size.head_size <= 256,
          "the head size of q must be in 1..256, got ", size.head_size);
    check_size("cu_seqlens_k", cu_seqlens_k, 0, size.num_sequences + 1);
    check_size("v", v, 0, size.num_keys);
    for (const auto& [name, x] : {std::pair{"k", &k}, std::pair{"v", &v}}) {
      check_size(name, *x, 1, size.num_heads);
      check_size(name, *x, 2, size.head_size);
      check_type(name, *x, type);
    }
    q_ = torch::stable::contiguous(q);
    k_ = torch::stable::contiguous(k);
    v_ = torch::stable::contiguous(v);
    cu_seqlens_q_ = torch::stable::contiguous(cu_seqlens_q);
    cu_seqlens_k_ = torch::stable::contiguous(cu_seqlens_k);
    if (dropout_p > 0) seed_ = *seed;
  }

  // Valid while this object lives. T must have the size and layout of `type`.
  template <class T>
  CausalAttention<T> kernel_args() const {
    return {data<T>(q_),
            data<T>(k_),
            data<T>(v_),
            data<int32_t>(cu_seqlens_q_),
            data<int32_t>(cu_seqlens_k_),
            seed_ ? data<int64_t>(*seed_) : nullptr,
            dropout_,
            size};
  }

  // A tensor with one row for each query, such as the output or its gradient, checked and
  // contiguous.
  Tensor contiguous_like_q(const char* name, const Tensor& x) const {
    check_devices({{"q", &q_}, {name, &x}});
    check_dims(name, x, 3);
    check_size(name, x, 0, size.num_queries);
    check_size(name, x, 1, size.num_heads);
    check_size(name, x, 2, size.head_size);
    check_type(name, x, type);
    return torch::stable::contiguous(x);
  }

  Tensor contiguous_lse(const Tensor& lse, ScalarType lse_type) const {
    check_devices({{"q", &q_}, {"lse", &lse}});
    check_dims("lse", lse, 2);
    check_size("lse", lse, 0, size.num_queries);
    check_size("lse", lse, 1, size.num_heads);
    check_type("lse", lse, lse_type);
    return torch::stable::contiguous(lse);
  }

 private:
  Tensor q_, k_, v_, cu_seqlens_q_, cu_seqlens_k_;
  std::optional<Tensor> seed_;
  DropoutSite dropout_;
};

}  // namespace ssept
