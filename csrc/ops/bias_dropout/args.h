// From the tensors of a `bias_dropout` call to checked, contiguous arguments for its kernels.
#pragma once
#include "common/checks.h"
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
    x_ = contiguous("x", x, {kAnySize, kAnySize}, type);
    num_rows = x.size(0);
    width = x.size(1);
    bias_ = contiguous("bias", bias, {width}, type);
    check(!(relu && residual), "relu and residual cannot be combined");
    if (residual) residual_ = contiguous("residual", *residual, {num_rows, width}, type);
  }

  // Valid while this object lives. T must have the size and layout of `type`.
  template <class T>
  BiasDropout<T> kernel_args() const {
    return {data<T>(x_), data<T>(bias_), residual_ ? data<T>(*residual_) : nullptr, dropout_, relu_,
            num_rows,    width};
  }

 private:
  Tensor x_, bias_;
  std::optional<Tensor> residual_;
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
    out_ = contiguous("out", out, {kAnySize, kAnySize}, type);
    num_rows = out.size(0);
    width = out.size(1);
    grad_ = contiguous("grad", grad, {num_rows, width}, type);
  }

  // Valid while this object lives. T must have the size and layout of `type`.
  template <class T>
  BiasDropoutBackward<T> kernel_args() const {
    return {data<T>(grad_), data<T>(out_), dropout_, relu_, num_rows, width};
  }

 private:
  Tensor grad_, out_;
  bool relu_;
  DropoutSite dropout_;
};

}  // namespace ssept
