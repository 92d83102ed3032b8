// `feed_forward` on CUDA: torch's products, and launches between them.
#include "common/library.h"
#include "cuda/runtime.h"
#include "ops/feed_forward/launch.h"
#include "ops/feed_forward/steps.h"

namespace ssept::cuda {
namespace {

template <class T>
class Steps {
 public:
  using A = Accumulator<T>;
  using Kernels = FeedForwardKernels<T>;

  Steps(const FeedForwardArgs& args, const DeviceOf& device)
      : device_(device),
        num_biases_(args.inner + args.width),
        num_parts_(feed_forward_parts(args.num_rows)),
        part_sums_(torch::stable::new_empty(args.x, {num_parts_, num_biases_},
                                            accumulator_type(args.type))) {}

  const Products& products() const { return device_.products(); }

  void finish(const BiasDropout<T>& in, T* x) {
    check_cuda("feed_forward", Kernels::finish(in, x, device_.stream()));
  }

  void start(const BiasDropoutBackward<T>& in, const T* grad, T* grad_x, T* copy,
             int64_t first_bias) {
    A* sums = mutable_data<A>(part_sums_) + first_bias;
    check_cuda("feed_forward_backward",
               Kernels::start(in, grad, grad_x, copy, sums, num_biases_, device_.stream()));
  }

  void sum_biases(A* bias1, int64_t inner, A* bias2, int64_t width) {
    check_cuda("feed_forward_backward", Kernels::sum_parts(data<A>(part_sums_), num_parts_, bias1,
                                                           inner, bias2, width, device_.stream()));
  }

 private:
  const DeviceOf& device_;
  int64_t num_biases_, num_parts_;
  Tensor part_sums_;
};

std::tuple<Tensor, Tensor> feed_forward(const Tensor& x, const Tensor& weight1, const Tensor& bias1,
                                        const Tensor& weight2, const Tensor& bias2,
                                        double dropout_p, const std::optional<Tensor>& seed,
                                        int64_t site, const std::optional<Tensor>& residual) {
  const FeedForward args(x, weight1, bias1, weight2, bias2, dropout_p, seed, site, residual);
  const DeviceOf device(x);
  dispatch_floating("x", args.type,
                    [&]<class T>() { forward_by_steps<T>(Steps<T>(args, device), args); });
  return args.results();
}

FeedForwardBackward::Results feed_forward_backward(const Tensor& grad, const Tensor& x,
                                                   const Tensor& hidden, const Tensor& weight1,
                                                   const Tensor& weight2, double dropout_p,
                                                   const std::optional<Tensor>& seed, int64_t site,
                                                   bool x_is_residual) {
  const FeedForwardBackward args(grad, x, hidden, weight1, weight2, dropout_p, seed, site,
                                 x_is_residual);
  const DeviceOf device(x);
  dispatch_floating("x", args.type,
                    [&]<class T>() { backward_by_steps<T>(Steps<T>(args, device), args); });
  return args.results();
}

}  // namespace
}  // namespace ssept::cuda

SSEPT_LIBRARY_IMPL(SSEPT_CUDA_KEY, m) {
  m.impl("feed_forward", TORCH_BOX(&ssept::cuda::feed_forward));
  m.impl("feed_forward_backward", TORCH_BOX(&ssept::cuda::feed_forward_backward));
}
