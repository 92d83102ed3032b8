// `feed_forward` as products of torch's and kernels between them, on either device. `steps` has
// products(), torch's; multiply_weight, that of a weight's gradient; finish and start, the kernels
// after and before a product; and finish_sums, which adds up what is left of the gradients of
// weights, biases and the norm.
#pragma once
#include "common/products.h"
#include "ops/feed_forward/args.h"

namespace ssept {

template <class T, class Steps>
void forward_by_steps(Steps&& steps, const FeedForward& f) {
  steps.products().multiply(f.hidden, f.x, transposed(f.weight1));
  steps.finish(f.after_first<T>(), ResultNorm<T>{}, mutable_data<T>(f.hidden));
  steps.products().multiply(f.out, f.hidden, transposed(f.weight2));
  steps.finish(f.after_second<T>(), f.norm<T>(), mutable_data<T>(f.out));
}

template <class T, class Steps>
void backward_by_steps(Steps&& steps, const FeedForwardBackward& f) {
  const Tensor grad_out = f.new_rows(f.width), grad_hidden = f.new_rows(f.inner);
  // The residual's, to which the rest is added last.
  T* const grad_x = f.x_is_residual ? mutable_data<T>(f.grad_x) : nullptr;
  if (f.has_norm)
    steps.start_after_norm(f.before_second<T>(), f.before_norm<T>(), mutable_data<T>(grad_out),
                           f.inner);
  else
    steps.start(f.before_second<T>(), data<T>(f.grad), mutable_data<T>(grad_out), grad_x, f.inner);
  steps.multiply_weight(f.grad_weight2, grad_out, f.hidden);
  steps.products().multiply(grad_hidden, grad_out, f.weight2);
  steps.start(f.before_first<T>(), data<T>(grad_hidden), mutable_data<T>(grad_hidden),
              static_cast<T*>(nullptr), 0);
  steps.multiply_weight(f.grad_weight1, grad_hidden, f.x);
  if (f.x_is_residual)
    steps.products().add_product(f.grad_x, grad_hidden, f.weight1);
  else
    steps.products().multiply(f.grad_x, grad_hidden, f.weight1);
  steps.finish_sums(f);
}

}  // namespace ssept
