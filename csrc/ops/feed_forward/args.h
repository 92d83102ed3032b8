// From the tensors of a `feed_forward` call to checked, contiguous arguments for its kernels.
#pragma once
#include <tuple>

#include "common/dtype.h"
#include "ops/feed_forward/params.h"

namespace ssept {

// What forward and backward have in common.
struct FeedForwardArgs {
  ScalarType type;
  DropoutSite dropout1, dropout2;  // at `site` and the one after it
  Tensor x, weight1, weight2;
  int64_t num_rows, width, inner;

  FeedForwardArgs(const Tensor& x_, const Tensor& weight1_, const Tensor& weight2_,
                  double dropout_p, const std::optional<Tensor>& seed, int64_t site)
      : type(x_.scalar_type()),
        dropout1(check_dropout(dropout_p, seed, site)),
        dropout2(check_dropout(dropout_p, seed, site + 1)),
        x(contiguous("x", x_, {kAnySize, kAnySize}, type)),
        weight1(contiguous("weight1", weight1_, {kAnySize, x_.size(1)}, type)),
        weight2(contiguous("weight2", weight2_, {x_.size(1), weight1_.size(0)}, type)),
        num_rows(x.size(0)),
        width(x.size(1)),
        inner(weight1.size(0)) {
    check_devices({{"x", &x_},
                   {"weight1", &weight1_},
                   {"weight2", &weight2_},
                   {"seed", dropout_p > 0 ? pointer(seed) : nullptr}});
  }
  Tensor new_rows(int64_t columns) const {
    return torch::stable::new_empty(x, {num_rows, columns});
  }
};

struct FeedForward : FeedForwardArgs {
  Tensor bias1, bias2, residual;
  Tensor out, hidden;  // results

  FeedForward(const Tensor& x_, const Tensor& weight1_, const Tensor& bias1_,
              const Tensor& weight2_, const Tensor& bias2_, double dropout_p,
              const std::optional<Tensor>& seed, int64_t site,
              const std::optional<Tensor>& residual_)
      : FeedForwardArgs(x_, weight1_, weight2_, dropout_p, seed, site),
        bias1(contiguous("bias1", bias1_, {inner}, type)),
        bias2(contiguous("bias2", bias2_, {width}, type)),
        residual(residual_ ? contiguous("residual", *residual_, {num_rows, width}, type) : x),
        out(new_rows(width)),
        hidden(new_rows(inner)) {
    check_devices(
        {{"x", &x_}, {"bias1", &bias1_}, {"bias2", &bias2_}, {"residual", pointer(residual_)}});
  }

  // Valid while this object lives. T must have the size and layout of `type`.
  template <class T>
  BiasDropout<T> after_first() const {
    return {data<T>(bias1), nullptr, dropout1, true, num_rows, inner};
  }
  template <class T>
  BiasDropout<T> after_second() const {
    return {data<T>(bias2), data<T>(residual), dropout2, false, num_rows, width};
  }
  std::tuple<Tensor, Tensor> results() const { return {out, hidden}; }
};

struct FeedForwardBackward : FeedForwardArgs {
  using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
  Tensor grad, hidden;
  bool x_is_residual;
  Tensor grad_x, grad_weight1, grad_bias1, grad_weight2, grad_bias2;  // results

  FeedForwardBackward(const Tensor& grad_, const Tensor& x_, const Tensor& hidden_,
                      const Tensor& weight1_, const Tensor& weight2_, double dropout_p,
                      const std::optional<Tensor>& seed, int64_t site, bool x_is_residual_)
      : FeedForwardArgs(x_, weight1_, weight2_, dropout_p, seed, site),
        grad(contiguous("grad", grad_, {num_rows, width}, type)),
        hidden(contiguous("hidden", hidden_, {num_rows, inner}, type)),
        x_is_residual(x_is_residual_),
        grad_x(new_rows(width)),
        grad_weight1(torch::stable::new_empty(x, {inner, width})),
        grad_bias1(torch::stable::new_empty(x, {inner}, accumulator_type(type))),
        grad_weight2(torch::stable::new_empty(x, {width, inner})),
        grad_bias2(torch::stable::new_empty(x, {width}, accumulator_type(type))) {
    check_devices({{"x", &x_}, {"grad", &grad_}, {"hidden", &hidden_}});
  }

  // Valid while this object lives. T must have the size and layout of `type`.
  template <class T>
  BiasDropoutBackward<T> before_first() const {
    return {data<T>(hidden), dropout1, num_rows, inner};
  }
  template <class T>
  BiasDropoutBackward<T> before_second() const {
    return {nullptr, dropout2, num_rows, width};
  }
  Results results() const { return {grad_x, grad_weight1, grad_bias1, grad_weight2, grad_bias2}; }
};

}  // namespace ssept
