// From the tensors of a `gated_residual` or `swiglu` call to checked, contiguous arguments for the
// kernels.
#pragma once
#include <tuple>

#include "common/dtype.h"
#include "ops/gated_residual/params.h"

namespace ssept {

class GatedResidualArgs {
 public:
  ScalarType type;

  // Of a forward, or of a backward, whose `rows` are the gradient.
  GatedResidualArgs(const char* name, const Tensor& rows, const std::optional<Tensor>& y,
                    const std::optional<Tensor>& gate, double dropout_p,
                    const std::optional<Tensor>& seed, int64_t site)
      : type(rows.scalar_type()),
        dropout_(check_dropout(dropout_p, seed, site)),
        rows_(contiguous(name, rows, {kAnySize, kAnySize}, type)) {
    if (y) y_ = contiguous("y", *y, {rows.size(0), rows.size(1)}, type);
    if (gate) gate_ = contiguous("gate", *gate, {rows.size(0), rows.size(1)}, type);
    check_devices({{name, &rows},
                   {"y", pointer(y)},
                   {"gate", pointer(gate)},
                   {"seed", dropout_p > 0 ? pointer(seed) : nullptr}});
  }

  // Valid while this object lives. T must have the size and layout of `type`.
  template <class T>
  GatedResidual<T> kernel_args() const {
    return {data<T>(rows_), data<T>(y_), data<T>(gate_), dropout_, rows_.size(0), rows_.size(1)};
  }
  Tensor new_rows() const {
    return torch::stable::new_empty(rows_, {rows_.size(0), rows_.size(1)});
  }
  // Of the gate; no rows where there is none.
  Tensor new_gate() const {
    return torch::stable::new_empty(rows_, {gate_ ? rows_.size(0) : 0, rows_.size(1)});
  }

 private:
  DropoutSite dropout_;
  Tensor rows_;
  std::optional<Tensor> y_, gate_;
};

class SwigluArgs {
 public:
  ScalarType type;

  SwigluArgs(const Tensor& u, double dropout_p, const std::optional<Tensor>& seed, int64_t site)
      : type(u.scalar_type()),
        dropout_(check_dropout(dropout_p, seed, site)),
        u_(contiguous("u", u, {kAnySize, kAnySize}, type)) {
    check(u.size(1) % 2 == 0, "u must have an even number of columns, got shape ", Shape(u));
    check_devices({{"u", &u}, {"seed", dropout_p > 0 ? pointer(seed) : nullptr}});
  }

  // Valid while this object lives. T must have the size and layout of `type`.
  template <class T>
  Swiglu<T> kernel_args() const {
    return {data<T>(u_), dropout_, u_.size(0), u_.size(1) / 2};
  }
  Tensor new_rows(int64_t columns) const {
    return torch::stable::new_empty(u_, {u_.size(0), columns});
  }
  Tensor contiguous_grad(const Tensor& grad) const {
    check_devices({{"u", &u_}, {"grad", &grad}});
    return contiguous("grad", grad, {u_.size(0), u_.size(1) / 2}, type);
  }

 private:
  DropoutSite dropout_;
  Tensor u_;
};

}  // namespace ssept
