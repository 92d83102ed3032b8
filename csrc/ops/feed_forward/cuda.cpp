// `feed_forward` on CUDA: torch's products, and launches between them.
#include "common/library.h"
#include "cuda/runtime.h"
#include "cuda/weight_parts.h"
#include "ops/feed_forward/args.h"
#include "ops/feed_forward/launch.h"

namespace ssept::cuda {
namespace {

template <class T>
void forward(const FeedForward& f, const DeviceOf& device) {
  using Kernels = FeedForwardKernels<T>;
  const auto finish = [&](const BiasDropout<T>& in, const ResultNorm<T>& norm, const Tensor& x) {
    check_cuda("feed_forward", Kernels::finish(in, norm, mutable_data<T>(x), device.stream()));
  };
  device.products().multiply(f.hidden, f.x, transposed(f.weight1));
  finish(f.after_first<T>(), {}, f.hidden);
  device.products().multiply(f.out, f.hidden, transposed(f.weight2));
  finish(f.after_second<T>(), f.norm<T>(), f.out);
}

template <class T>
void backward(const FeedForwardBackward& f, const DeviceOf& device) {
  using A = Accumulator<T>;
  using Kernels = FeedForwardKernels<T>;
  const char* op = "feed_forward_backward";
  const Products& products = device.products();
  const int64_t num_sums = f.num_sums(), parts = num_parts(f.num_rows);
  const Tensor part_sums =
      torch::stable::new_empty(f.x, {parts, num_sums}, accumulator_type(f.type));
  A *const of_first = mutable_data<A>(part_sums), *const of_second = of_first + f.inner;
  const Tensor grad_out = f.new_rows(f.width), grad_hidden = f.new_rows(f.inner);
  T *const out = mutable_data<T>(grad_out), *const hidden = mutable_data<T>(grad_hidden);
  WeightParts weight1, weight2;

  // The residual's gradient is written first, and the rest added last.
  if (f.has_norm)
    check_cuda(op, Kernels::start_after_norm(f.before_second<T>(), f.before_norm<T>(), out,
                                             of_second, num_sums, device.stream()));
  else
    check_cuda(op, Kernels::start(f.before_second<T>(), data<T>(f.grad), out,
                                  f.x_is_residual ? mutable_data<T>(f.grad_x) : nullptr, of_second,
                                  num_sums, device.stream()));
  weight2.multiply(products, f.grad_weight2, grad_out, f.hidden);
  products.multiply(grad_hidden, grad_out, f.weight2);
  check_cuda(op, Kernels::start(f.before_first<T>(), hidden, hidden, nullptr, of_first, num_sums,
                                device.stream()));
  weight1.multiply(products, f.grad_weight1, grad_hidden, f.x);
  if (f.x_is_residual)
    products.add_product(f.grad_x, grad_hidden, f.weight1);
  else
    products.multiply(f.grad_x, grad_hidden, f.weight1);

  PartsOf<A, 6> all{{weight2.sums<A>(), weight1.sums<A>()}};
  const A* from = of_first;
  int i = 2;
  for (const auto& [sum, columns] : f.sums<A>()) {
    all.of[i++] = {from, parts, num_sums, sum, columns};
    from += columns;
  }
  check_cuda(op, Kernels::finish_sums(all, device.stream()));
}

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
  dispatch_floating("x", args.type, [&]<class T>() { forward<T>(args, device); });
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
  dispatch_floating("x", args.type, [&]<class T>() { backward<T>(args, device); });
  return args.results();
}

}  // namespace
}  // namespace ssept::cuda

SSEPT_LIBRARY_IMPL(SSEPT_CUDA_KEY, m) {
  m.impl("feed_forward", TORCH_BOX(&ssept::cuda::feed_forward));
  m.impl("feed_forward_backward", TORCH_BOX(&ssept::cuda::feed_forward_backward));
}
