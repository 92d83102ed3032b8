// From the tensors of a `position_layer_norm` call to checked, contiguous arguments for its
// kernels.
#pragma once
#include <cmath>

#include "common/dtype.h"
#include "ops/position_layer_norm/params.h"

namespace ssept {

class PositionLayerNormArgs {
 public:
  ScalarType type;

  PositionLayerNormArgs(const Tensor& x, const Tensor& gamma, const Tensor& beta,
                        const Tensor& positions, const Tensor& cu_seqlens, double eps)
      : type(x.scalar_type()), eps_(eps) {
    check(eps >= 0 && std::isfinite(eps), "eps must be finite and at least 0, got ", eps);
    check_devices({{"x", &x},
                   {"gamma", &gamma},
                   {"beta", &beta},
                   {"positions", &positions},
                   {"cu_seqlens", &cu_seqlens}});
    x_ = contiguous("x", x, {kAnySize, kAnySize}, type);
    by_position_ = gamma.dim() != 1;
    if (by_position_) {
      gamma_ = contiguous("gamma", gamma, {kAnySize, x.size(1)}, type);
      beta_ = contiguous("beta", beta, {gamma.size(0), x.size(1)}, type);
    } else {
      gamma_ = contiguous("gamma", gamma, {x.size(1)}, type);
      beta_ = contiguous("beta", beta, {x.size(1)}, type);
    }
    positions_ = contiguous("positions", positions, {x.size(0)}, ScalarType::Long);
    cu_seqlens_ = contiguous_cu_seqlens("cu_seqlens", cu_seqlens);
  }

  // Valid while this object lives. T must have the size and layout of `type`.
  template <class T>
  PositionLayerNorm<T> kernel_args() const {
    return {data<T>(x_),
            data<T>(gamma_),
            data<T>(beta_),
            data<int64_t>(positions_),
            data<int32_t>(cu_seqlens_),
            x_.size(0),
            x_.size(1),
            by_position_ ? gamma_.size(0) : 1,
            cu_seqlens_.size(0) - 1,
            eps_,
            by_position_};
  }

  // For the gradient of gamma, or of beta.
  Tensor new_like_gamma() const {
    const ScalarType wide = accumulator_type(type);
    if (!by_position_) return torch::stable::new_empty(gamma_, {gamma_.size(0)}, wide);
    return torch::stable::new_empty(gamma_, {gamma_.size(0), gamma_.size(1)}, wide);
  }

  // The gradient of the output, checked and contiguous.
  Tensor contiguous_grad(const Tensor& grad) const {
    check_devices({{"x", &x_}, {"grad", &grad}});
    return contiguous("grad", grad, {x_.size(0), x_.size(1)}, type);
  }

 private:
  Tensor x_, gamma_, beta_, positions_, cu_seqlens_;
  bool by_position_;
  double eps_;
};

}  // namespace ssept
