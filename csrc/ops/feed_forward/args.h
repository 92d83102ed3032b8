// From the tensors of a `feed_forward` call to checked, contiguous arguments for its kernels.
#pragma once
#include <array>
#include <cmath>
#include <tuple>

#include "common/dtype.h"
#include "common/row_norm.h"
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
  std::optional<Tensor> gamma, beta;
  double eps;
  Tensor out, hidden, normal;  // results

  FeedForward(const Tensor& x_, const Tensor& weight1_, const Tensor& bias1_,
              const Tensor& weight2_, const Tensor& bias2_, double dropout_p,
              const std::optional<Tensor>& seed, int64_t site,
              const std::optional<Tensor>& residual_, const std::optional<Tensor>& gamma_,
              const std::optional<Tensor>& beta_, double eps_)
      : FeedForwardArgs(x_, weight1_, weight2_, dropout_p, seed, site),
        bias1(contiguous("bias1", bias1_, {inner}, type)),
        bias2(contiguous("bias2", bias2_, {width}, type)),
        residual(residual_ ? contiguous("residual", *residual_, {num_rows, width}, type) : x),
        eps(eps_),
        out(new_rows(width)),
        hidden(new_rows(inner)),
        normal(torch::stable::new_empty(x, {gamma_ ? num_rows : 0, width})) {
    check_devices({{"x", &x_},
                   {"bias1", &bias1_},
                   {"bias2", &bias2_},
                   {"residual", pointer(residual_)},
                   {"gamma", pointer(gamma_)},
                   {"beta", pointer(beta_)}});
    check(gamma_.has_value() == beta_.has_value(), "gamma and beta must be given together");
    check(eps >= 0 && std::isfinite(eps), "eps must be finite and at least 0, got ", eps);
    if (!gamma_) return;
    gamma = contiguous("gamma", *gamma_, {width}, type);
    beta = contiguous("beta", *beta_, {width}, type);
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
  template <class T>
  ResultNorm<T> norm() const {
    return {data<T>(gamma), data<T>(beta), eps, mutable_data<T>(normal)};
  }
  std::tuple<Tensor, Tensor, Tensor> results() const { return {out, hidden, normal}; }
};

struct FeedForwardBackward : FeedForwardArgs {
  using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
  std::optional<Tensor> grad, out, grad_normal, gamma;
  Tensor hidden;
  bool x_is_residual, has_norm;
  double eps;
  Tensor grad_x, grad_weight1, grad_bias1, grad_weight2, grad_bias2, grad_residual, grad_gamma,
      grad_beta;  // results

  FeedForwardBackward(const std::optional<Tensor>& grad_, const Tensor& x_, const Tensor& hidden_,
                      const Tensor& weight1_, const Tensor& weight2_, double dropout_p,
                      const std::optional<Tensor>& seed, int64_t site, bool x_is_residual_,
                      const std::optional<Tensor>& out_, const std::optional<Tensor>& grad_normal_,
                      const std::optional<Tensor>& gamma_, double eps_)
      : FeedForwardArgs(x_, weight1_, weight2_, dropout_p, seed, site),
        hidden(contiguous("hidden", hidden_, {num_rows, inner}, type)),
        x_is_residual(x_is_residual_),
        has_norm(gamma_.has_value()),
        eps(eps_),
        grad_x(new_rows(width)),
        grad_weight1(torch::stable::new_empty(x, {inner, width})),
        grad_bias1(new_sums(inner)),
        grad_weight2(torch::stable::new_empty(x, {width, inner})),
        grad_bias2(new_sums(width)),
        grad_residual(
            torch::stable::new_empty(x, {has_norm && !x_is_residual ? num_rows : 0, width})),
        grad_gamma(new_sums(has_norm ? width : 0)),
        grad_beta(new_sums(has_norm ? width : 0)) {
    check_devices({{"x", &x_},
                   {"grad", pointer(grad_)},
                   {"hidden", &hidden_},
                   {"out", pointer(out_)},
                   {"grad_normal", pointer(grad_normal_)},
                   {"gamma", pointer(gamma_)}});
    check(out_.has_value() == has_norm && grad_normal_.has_value() == has_norm,
          "out, grad_normal and gamma must be given together");
    check(grad_.has_value() || has_norm, "grad must be given without grad_normal");
    if (grad_) grad = contiguous("grad", *grad_, {num_rows, width}, type);
    if (!has_norm) return;
    out = contiguous("out", *out_, {num_rows, width}, type);
    grad_normal = contiguous("grad_normal", *grad_normal_, {num_rows, width}, type);
    gamma = contiguous("gamma", *gamma_, {width}, type);
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
  // With a norm. Its gradient of `out` is that of the residual, too.
  template <class T>
  RowNormBackward<T> before_norm() const {
    return {data<T>(out),
            data<T>(gamma),
            data<T>(grad_normal),
            data<T>(grad),
            mutable_data<T>(x_is_residual ? grad_x : grad_residual),
            num_rows,
            width,
            eps};
  }
  // Where sums over the rows go, and how many columns each has.
  template <class A>
  std::array<std::pair<A*, int64_t>, 4> sums() const {
    const int64_t of_norm = has_norm ? width : 0;
    return {{{mutable_data<A>(grad_bias1), inner},
             {mutable_data<A>(grad_bias2), width},
             {mutable_data<A>(grad_gamma), of_norm},
             {mutable_data<A>(grad_beta), of_norm}}};
  }
  int64_t num_sums() const { return inner + (has_norm ? 3 : 1) * width; }
  Results results() const {
    return {grad_x,     grad_weight1,  grad_bias1, grad_weight2,
            grad_bias2, grad_residual, grad_gamma, grad_beta};
  }

 private:
  Tensor new_sums(int64_t columns) const {
    return torch::stable::new_empty(x, {columns}, accumulator_type(type));
  }
};

}  // namespace ssept
