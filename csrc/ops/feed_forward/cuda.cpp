// `feed_forward` on CUDA: torch's products, and launches between them.
#include "common/library.h"
#include "cuda/runtime.h"
#include "cuda/weight_parts.h"
#include "ops/feed_forward/launch.h"
#include "ops/feed_forward/steps.h"

namespace ssept::cuda {
namespace {

template <class T>
class Steps {
 public:
  using A = Accumulator<T>;
  using Kernels = FeedForwardKernels<T>;

  Steps(const FeedForwardArgs& args, int64_t num_sums, const DeviceOf& device)
      : device_(device),
        num_sums_(num_sums),
        num_parts_(num_parts(args.num_rows)),
        part_sums_(torch::stable::new_empty(args.x, {num_parts_, num_sums},
                                            accumulator_type(args.type))) {}

  const Products& products() const { return device_.products(); }

  void multiply_weight(const Tensor& weight, const Tensor& grad, const Tensor& x) {
    weights_[num_weights_++].multiply(products(), weight, grad, x);
  }

  void finish(const BiasDropout<T>& in, const ResultNorm<T>& norm, T* x) {
    check_cuda("feed_forward", Kernels::finish(in, norm, x, device_.stream()));
  }

  void start(const BiasDropoutBackward<T>& in, const T* grad, T* grad_x, T* copy,
             int64_t first_sum) {
    A* sums = mutable_data<A>(part_sums_) + first_sum;
    check_cuda("feed_forward_backward",
               Kernels::start(in, grad, grad_x, copy, sums, num_sums_, device_.stream()));
  }

  void start_after_norm(const BiasDropoutBackward<T>& in, const RowNormBackward<T>& norm, T* grad_x,
                        int64_t first_sum) {
    A* sums = mutable_data<A>(part_sums_) + first_sum;
    check_cuda("feed_forward_backward",
               Kernels::start_after_norm(in, norm, grad_x, sums, num_sums_, device_.stream()));
  }

  void finish_sums(const FeedForwardBackward& args) {
    PartsOf<A, 6> all{{weights_[0].sums<A>(), weights_[1].sums<A>()}};
    const A* from = data<A>(part_sums_);
    int i = 2;
    for (const auto& [sum, columns] : args.sums<A>()) {
      all.of[i++] = {from, num_parts_, num_sums_, sum, columns};
      from += columns;
    }
    check_cuda("feed_forward_backward", Kernels::finish_sums(all, device_.stream()));
  }

 private:
  const DeviceOf& device_;
  int64_t num_sums_, num_parts_;
  Tensor part_sums_;
  WeightParts weights_[2];
  int num_weights_ = 0;
};

std::tuple<Tensor, Tensor, Tensor> feed_forward(const Tensor& x, const Tensor& weight1,
                                                const Tensor& bias1, const Tensor& weight2,
                                                const Tensor& bias2, double dropout_p,
                                                const std::optional<Tensor>& seed, int64_t site,
                                                const std::optional<Tensor>& residual,
                                                const std::optional<Tensor>& gamma,
                                                const std::optional<Tensor>& beta, double eps) {
  const FeedForward args(x, weight1, bias1, weight2, bias2, dropout_p, seed, site, residual, gamma,
                         beta, eps);
  const DeviceOf device(x);
  dispatch_floating("x", args.type,
                    [&]<class T>() { forward_by_steps<T>(Steps<T>(args, 0, device), args); });
  return args.results();
}

FeedForwardBackward::Results feed_forward_backward(
    const std::optional<Tensor>& grad, const Tensor& x, const Tensor& hidden, const Tensor& weight1,
    const Tensor& weight2, double dropout_p, const std::optional<Tensor>& seed, int64_t site,
    bool x_is_residual, const std::optional<Tensor>& out, const std::optional<Tensor>& grad_normal,
    const std::optional<Tensor>& gamma, double eps) {
  const FeedForwardBackward args(grad, x, hidden, weight1, weight2, dropout_p, seed, site,
                                 x_is_residual, out, grad_normal, gamma, eps);
  const DeviceOf device(x);
  dispatch_floating("x", args.type, [&]<class T>() {
    backward_by_steps<T>(Steps<T>(args, args.num_sums(), device), args);
  });
  return args.results();
}

}  // namespace
}  // namespace ssept::cuda

SSEPT_LIBRARY_IMPL(SSEPT_CUDA_KEY, m) {
  m.impl("feed_forward", TORCH_BOX(&ssept::cuda::feed_forward));
  m.impl("feed_forward_backward", TORCH_BOX(&ssept::cuda::feed_forward_backward));
}
