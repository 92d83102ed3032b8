// From the tensors of a `causal_attention` call to checked, contiguous arguments for its kernels.
#pragma once
#include <algorithm>
#include <cmath>

#include "common/checks.h"
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

  // Valid while this object lives. T must have the size and layout of `type`.
  template <class T>
  CausalAttention<T> kernel_args() const {
    return {data<T>(q_),
            data<T>(k_),
            data<T>(v_),
            data<int32_t>(cu_seqlens_q_),
            data<int32_t>(cu_seqlens_k_),
            dropout_,
            size};
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
  DropoutSite dropout_;
};

}  // namespace ssept
