// From the tensors of a `position_layer_norm` call to checked, contiguous arguments for its
// kernels.
#pragma once
#include "common/checks.h"
#include "ops/position_layer_norm/params.h"

namespace ssept {

class PositionLayerNormArgs {
 public:
  ScalarType type;

  PositionLayerNormArgs(const Tensor& x, const Tensor& gamma, const Tensor& beta,
                        const Tensor& positions, const Tensor& cu_seqlens, double eps)
      : type(x.scalar_type()), eps_(eps) {
    check_devices({{"x", &x},
                   {"gamma", &gamma},
                   {"beta", &beta},
                   {"positions", &positions},
                   {"cu_seqlens", &cu_seqlens}});
    check_dims("x", x, 2);
    check_dims("gamma", gamma, 2);
    check_dims("beta", beta, 2);
    check_dims("positions", positions, 1);
    check_cu_seqlens("cu_seqlens", cu_seqlens);
    check_size("gamma", gamma, 1, x.size(1));
    check_size("beta", beta, 0, gamma.size(0));
    check_size("beta", beta, 1, x.size(1));
    check_size("positions", positions, 0, x.size(0));
    check_type("gamma", gamma, type);
    check_type("beta", beta, type);
    check_type("positions", positions, ScalarType::Long);
    x_ = torch::stable::contiguous(x);
    gamma_ = torch::stable::contiguous(gamma);
    beta_ = torch::stable::contiguous(beta);
    positions_ = torch::stable::contiguous(positions);
    cu_seqlens_ = torch::stable::contiguous(cu_seqlens);
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
            gamma_.size(0),
            cu_seqlens_.size(0) - 1,
            eps_};
  }

  // The gradient of the output, checked and contiguous.
  Tensor contiguous_grad(const Tensor& grad) const {
    check_devices({{"x", &x_}, {"grad", &grad}});
    check_dims("grad", grad, 2);
    check_size("grad", grad, 0, x_.size(0));
    check_size("grad", grad, 1, x_.size(1));
    check_type("grad", grad, type);
    return torch::stable::contiguous(grad);
  }

 private:
  Tensor x_, gamma_, beta_, positions_, cu_seqlens_;
  double eps_;
};

}  // namespace ssept
