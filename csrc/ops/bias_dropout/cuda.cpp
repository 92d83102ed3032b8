// `bias_dropout` on CUDA: from tensors to launches.
#include <tuple>

#include "common/library.h"
#include "cuda/runtime.h"
#include "ops/bias_dropout/args.h"
#include "ops/bias_dropout/launch.h"

namespace ssept::cuda {
namespace {

Tensor bias_dropout(const Tensor& x, const Tensor& bias, const std::optional<Tensor>& residual,
                    bool relu, double dropout_p, const std::optional<Tensor>& seed, int64_t site) {
  const BiasDropoutArgs args(x, bias, residual, relu, dropout_p, seed, site);
  const DeviceOf device(x);
  const Tensor out = torch::stable::new_empty(x, {args.num_rows, args.width});
  dispatch_floating("x", args.type, [&]<class T>() {
    check_cuda("bias_dropout", BiasDropoutKernels<T>::forward(
                                   args.kernel_args<T>(), mutable_data<T>(out), device.stream()));
  });
  return out;
}

std::tuple<Tensor, Tensor> bias_dropout_backward(const Tensor& grad, const Tensor& out, bool relu,
                                                 double dropout_p,
                                                 const std::optional<Tensor>& seed, int64_t site) {
  const BiasDropoutBackwardArgs args(grad, out, relu, dropout_p, seed, site);
  const DeviceOf device(out);
  const ScalarType wide = accumulator_type(args.type);
  const Tensor grad_x = torch::stable::new_empty(out, {args.num_rows, args.width});
  const Tensor grad_bias = torch::stable::new_empty(out, {args.width}, wide);
  const Tensor part_sums =
      torch::stable::new_empty(out, {bias_dropout_parts(args.num_rows), args.width}, wide);
  dispatch_floating("out", args.type, [&]<class T>() {
    using A = Accumulator<T>;
    check_cuda("bias_dropout_backward",
               BiasDropoutKernels<T>::backward(args.kernel_args<T>(), mutable_data<T>(grad_x),
                                               mutable_data<A>(part_sums),
                                               mutable_data<A>(grad_bias), device.stream()));
  });
  return {grad_x, grad_bias};
}

}  // namespace
}  // namespace ssept::cuda

SSEPT_LIBRARY_IMPL(SSEPT_CUDA_KEY, m) {
  m.impl("bias_dropout", TORCH_BOX(&ssept::cuda::bias_dropout));
  m.impl("bias_dropout_backward", TORCH_BOX(&ssept::cuda::bias_dropout_backward));
}
