// `lazy_adam` and `rowwise_adagrad` up to the kernels: from tensors to checked arguments. Device
// has the kernels, `update(table, in)`, which are called where there is something to update.
#pragma once
#include <cmath>

#include "common/checks.h"
#include "ops/row_update/params.h"

namespace ssept {

inline void check_finite(const char* name, double value) {
  check(value >= 0 && std::isfinite(value), name, " must be finite and at least 0, got ", value);
}

// Those that are changed in place must be contiguous, so the others must be too.
inline void check_tensor(const char* name, const Tensor& x, std::initializer_list<int64_t> sizes,
                         const Tensor& table, ScalarType type) {
  check_devices({{"table", &table}, {name, &x}});
  check(x.is_contiguous(), name, " must be contiguous");
  contiguous(name, x, sizes, type);
}

inline NumberIn number_in(const char* name, const Tensor& x, const Tensor& table) {
  check_devices({{"table", &table}, {name, &x}});
  const bool is_double = x.scalar_type() == ScalarType::Double;
  check(x.dim() == 0 && (is_double || x.scalar_type() == ScalarType::Float), name,
        " must be a float32 or float64 tensor without dimensions, got ",
        torch::headeronly::toString(x.scalar_type()), " of shape ", Shape(x));
  return {x.data_ptr(), is_double};
}

// Calls f(in), with what every optimiser has, of the table's type.
template <class F>
void with_row_update(const Tensor& table, const Tensor& ids, const Tensor& grad,
                     const Tensor& learning_rate, double eps, double weight_decay, F&& f) {
  const ScalarType type = table.scalar_type();
  check(type == ScalarType::Float || type == ScalarType::Double,
        "table must be float32 or float64, got ", torch::headeronly::toString(type));
  check_tensor("table", table, {kAnySize, kAnySize}, table, type);
  check_tensor("ids", ids, {kAnySize}, table, ScalarType::Long);
  check_tensor("grad", grad, {ids.size(0), table.size(1)}, table, type);
  const NumberIn rate = number_in("learning_rate", learning_rate, table);
  check_finite("eps", eps);
  check_finite("weight_decay", weight_decay);
  const auto call = [&]<class T>() {
    f(RowUpdate<T>{mutable_data<T>(table), data<int64_t>(ids), data<T>(grad), rate, eps,
                   weight_decay, ids.size(0), table.size(0), table.size(1)});
  };
  type == ScalarType::Double ? call.template operator()<double>()
                             : call.template operator()<float>();
}

template <class Device>
void lazy_adam(const Tensor& table, const Tensor& exp_avg, const Tensor& exp_avg_sq,
               const Tensor& ids, const Tensor& grad, const Tensor& learning_rate,
               const Tensor& step, double beta1, double beta2, double eps, double weight_decay) {
  const auto update = [&]<class T>(const RowUpdate<T>& in) {
    check_tensor("exp_avg", exp_avg, {in.rows, in.width}, table, table.scalar_type());
    check_tensor("exp_avg_sq", exp_avg_sq, {in.rows, in.width}, table, table.scalar_type());
    const NumberIn count = number_in("step", step, table);
    for (double beta : {beta1, beta2})
      check(beta >= 0 && beta < 1, "betas must be in [0, 1), got ", beta);
    if (in.num_ids * in.width == 0) return;
    Device::update(table, LazyAdam<T>{in, mutable_data<T>(exp_avg), mutable_data<T>(exp_avg_sq),
                                      count, beta1, beta2, std::log(beta1), std::log(beta2)});
  };
  with_row_update(table, ids, grad, learning_rate, eps, weight_decay, update);
}

template <class Device>
void rowwise_adagrad(const Tensor& table, const Tensor& sum_of_squares, const Tensor& ids,
                     const Tensor& grad, const Tensor& learning_rate, double eps,
                     double weight_decay) {
  const auto update = [&]<class T>(const RowUpdate<T>& in) {
    check_tensor("sum_of_squares", sum_of_squares, {in.rows}, table, table.scalar_type());
    if (in.num_ids * in.width == 0) return;
    Device::update(table, RowwiseAdagrad<T>{in, mutable_data<T>(sum_of_squares)});
  };
  with_row_update(table, ids, grad, learning_rate, eps, weight_decay, update);
}

}  // namespace ssept
