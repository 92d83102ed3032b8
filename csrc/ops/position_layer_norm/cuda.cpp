// `position_layer_norm` on CUDA: from tensors to launches.
#include <tuple>

#include "common/library.h"
#include "cuda/runtime.h"
#include "ops/position_layer_norm/args.h"
#include "ops/position_layer_norm/launch.h"

namespace ssept::cuda {
namespace {

Tensor position_layer_norm(const Tensor& x, const Tensor& gamma, const Tensor& beta,
                           const Tensor& positions, const Tensor& cu_seqlens, double eps) {
  const PositionLayerNormArgs args(x, gamma, beta, positions, cu_seqlens, eps);
  const DeviceOf device(x);
  const Tensor out = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  dispatch_floating("x", args.type, [&]<class T>() {
    check_cuda("position_layer_norm",
               PositionLayerNormKernels<T>::forward(args.kernel_args<T>(), mutable_data<T>(out),
                                                    device.note(), device.stream()));
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> position_layer_norm_backward(
    const Tensor& grad, const Tensor& x, const Tensor& gamma, const Tensor& beta,
    const Tensor& positions, const Tensor& cu_seqlens, double eps) {
  const PositionLayerNormArgs args(x, gamma, beta, positions, cu_seqlens, eps);
  const Tensor g = args.contiguous_grad(grad);
  const DeviceOf device(x);
  const Tensor grad_x = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  const Tensor grad_gamma = args.new_like_gamma(), grad_beta = args.new_like_gamma();
  dispatch_floating("x", args.type, [&]<class T>() {
    using A = Accumulator<T>;
    using Kernels = PositionLayerNormKernels<T>;
    const auto in = args.kernel_args<T>();
    const Tensor scratch =
        torch::stable::new_empty(x, {Kernels::scratch(in)}, accumulator_type(args.type));
    check_cuda("position_layer_norm_backward",
               Kernels::backward(in, data<T>(g), mutable_data<T>(grad_x), mutable_data<A>(scratch),
                                 mutable_data<A>(grad_gamma), mutable_data<A>(grad_beta),
                                 device.note(), device.stream()));
  });
  return {grad_x, grad_gamma, grad_beta};
}

}  // namespace
}  // namespace ssept::cuda

SSEPT_LIBRARY_IMPL(SSEPT_CUDA_KEY, m) {
  m.impl("position_layer_norm", TORCH_BOX(&ssept::cuda::position_layer_norm));
  m.impl("position_layer_norm_backward", TORCH_BOX(&ssept::cuda::position_layer_norm_backward));
}
