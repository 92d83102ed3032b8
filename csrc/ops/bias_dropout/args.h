// From the tensors of a `bias_dropout` call to checked, contiguous arguments for its kernels.
#pragma once
#include "common/dropout_args.h"
#include "ops/bias_dropout/params.h"

namespace ssept {

class BiasDropoutArgs {
 public:
  ScalarType type;
  int64_t num_rows, width;

  BiasDropoutArgs(const Tensor& x, const Tensor& bias, const std::optional<Tensor>& residual,
                  bool relu, double dropout_p, const std::optional<Tensor>& seed, int64_t site)
      : type(x.scalar_type()), relu_(relu), dropout_(check_dropout(dropout_p, seed, site)) {
    check_devices({{"x", &x},
                   {"bias", &bias},
                   {"residual", pointer(residual)},
                   {"seed", dropout_p > 0 ? pointer(seed) : nullptr}});
    check_dims("x", x, 2);
    check_dims("bias", bias, 1);
    num_rows = x.size(0);
    width = x.size(1);
    check_size("bias", bias, 0, width);
    check_type("bias", bias, type);
    check(!(relu && residual), "relu and residual cannot be combined");
    x_ = torch::stable::contiguous(x);
    bias_ = torch::stable::contiguous(bias);
    if (residual) {
      check_dims("residual", *residual, 2);
      check_size("residual", *residual, 0, num_rows);
      check_size("residual", *residual, 1, width);
      check_type("residual", *residual, type);
      residual_ = torch::stable::contiguous(*residual);
    }
    if (dropout_p > 0) seed_ = *seed;
  }

  // Valid while this object lives. T must have the size and layout of `type`.
  template <class T>
  BiasDropout<T> kernel_args() const {
    return {data<T>(x_),
            data<T>(bias_),
            residual_ ? data<T>(*residual_) : nullptr,
            seed_ ? data<int64_t>(*seed_) : nullptr,
            dropout_,
            relu_,
            num_rows,
            width};
  }

 private:
  Tensor x_, bias_;
  std::optional<Tensor> residual_, seed_;
  bool relu_;
  DropoutSite dropout_;
};

class BiasDropoutBackwardArgs {
 public:
  ScalarType type;
  int64_t num_rows, width;

  BiasDropoutBackwardArgs(const Tensor& grad, const Tensor& out, bool relu, double dropout_p,
                          const std::optional<Tensor>& seed, int64_t site)
      : type(out.scalar_type()), relu_(relu), dropout_(check_dropout(dropout_p, seed, site)) {
    check_devices(
        {{"out", &out}, {"grad", &grad}, {"seed", dropout_p > 0 ? pointer(seed) : nullptr}});
    check_dims("out", out, 2);
    check_dims("grad", grad, 2);
    num_rows = out.size(0);
    width = out.size(1);
    check_size("grad", grad, 0, num_rows);
    check_size("grad", grad, 1, width);
    check_type("grad", grad, type);
    grad_ = torch::stable::contiguous(grad);
    out_ = torch::stable::contiguous(out);
    if (dropout_p > 0) seed_ = *seed;
  }

  // Valid while this object lives. T must have the size and layout of `type`.
  template <class T>
  BiasDropoutBackward<T> kernel_args() const {
    return {data<T>(grad_), data<T>(out_), seed_ ? data<int64_t>(*seed_) : nullptr, dropout_, relu_,
            num_rows,       width};
  }

 private:
  Tensor grad_, out_;
  std::optional<Tensor> seed_;
  bool relu_;
  DropoutSite dropout_;
};

}  // namespace ssept
