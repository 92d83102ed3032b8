// `gated_residual` and `swiglu` on CUDA: from tensors to launches.
#include <tuple>

#include "common/library.h"
#include "cuda/runtime.h"
#include "ops/gated_residual/args.h"
#include "ops/gated_residual/launch.h"

namespace ssept::cuda {
namespace {

Tensor gated_residual(const Tensor& x, const Tensor& y, const std::optional<Tensor>& gate,
                      double dropout_p, const std::optional<Tensor>& seed, int64_t site) {
  const GatedResidualArgs args("x", x, y, gate, dropout_p, seed, site);
  const DeviceOf device(x);
  const Tensor out = args.new_rows();
  dispatch_floating("x", args.type, [&]<class T>() {
    check_cuda("gated_residual", GatedResidualKernels<T>::forward(
                                     args.kernel_args<T>(), mutable_data<T>(out), device.stream()));
  });
  return out;
}

std::tuple<Tensor, Tensor> gated_residual_backward(
    const Tensor& grad, const std::optional<Tensor>& y, const std::optional<Tensor>& gate,
    double dropout_p, const std::optional<Tensor>& seed, int64_t site) {
  const GatedResidualArgs args("grad", grad, y, gate, dropout_p, seed, site);
  const DeviceOf device(grad);
  const Tensor grad_y = args.new_rows(), grad_gate = args.new_gate();
  dispatch_floating("grad", args.type, [&]<class T>() {
    check_cuda("gated_residual_backward",
               GatedResidualKernels<T>::backward(args.kernel_args<T>(), mutable_data<T>(grad_y),
                                                 mutable_data<T>(grad_gate), device.stream()));
  });
  return {grad_y, grad_gate};
}

Tensor swiglu(const Tensor& u, double dropout_p, const std::optional<Tensor>& seed, int64_t site) {
  const SwigluArgs args(u, dropout_p, seed, site);
  const DeviceOf device(u);
  const Tensor out = args.new_rows(u.size(1) / 2);
  dispatch_floating("u", args.type, [&]<class T>() {
    check_cuda("swiglu", SwigluKernels<T>::forward(args.kernel_args<T>(), mutable_data<T>(out),
                                                   device.stream()));
  });
  return out;
}

Tensor swiglu_backward(const Tensor& grad, const Tensor& u, double dropout_p,
                       const std::optional<Tensor>& seed, int64_t site) {
  const SwigluArgs args(u, dropout_p, seed, site);
  const Tensor g = args.contiguous_grad(grad);
  const DeviceOf device(u);
  const Tensor grad_u = args.new_rows(u.size(1));
  dispatch_floating("u", args.type, [&]<class T>() {
    check_cuda("swiglu_backward",
               SwigluKernels<T>::backward(args.kernel_args<T>(), data<T>(g),
                                          mutable_data<T>(grad_u), device.stream()));
  });
  return grad_u;
}

}  // namespace
}  // namespace ssept::cuda

SSEPT_LIBRARY_IMPL(SSEPT_CUDA_KEY, m) {
  m.impl("gated_residual", TORCH_BOX(&ssept::cuda::gated_residual));
  m.impl("gated_residual_backward", TORCH_BOX(&ssept::cuda::gated_residual_backward));
  m.impl("swiglu", TORCH_BOX(&ssept::cuda::swiglu));
  m.impl("swiglu_backward", TORCH_BOX(&ssept::cuda::swiglu_backward));
}
