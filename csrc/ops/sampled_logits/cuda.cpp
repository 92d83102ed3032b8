// `sampled_logits` and `sampled_loss` on CUDA: from tensors to launches.
#include <tuple>

#include "common/library.h"
#include "cuda/runtime.h"
#include "ops/sampled_logits/args.h"
#include "ops/sampled_logits/launch.h"

namespace ssept::cuda {
namespace {

Tensor sampled_logits(const Tensor& hidden, const Tensor& item_weight,
                      const std::optional<Tensor>& user_weight, const Tensor& items,
                      const std::optional<Tensor>& users, const Tensor& cu_seqlens) {
  const SampledLogitsArgs args(hidden, item_weight, user_weight, items, users, cu_seqlens);
  const DeviceOf device(hidden);
  const Tensor logits =
      torch::stable::new_empty(hidden, {args.size.num_tokens, args.size.num_items});
  dispatch_floating("hidden", args.type, [&]<class T>() {
    check_cuda("sampled_logits", SampledLogitsKernels<T>::forward(
                                     args.kernel_args<T>(), nullptr, mutable_data<T>(logits),
                                     nullptr, nullptr, device.note(), device.stream()));
  });
  return logits;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sampled_loss(
    const Tensor& hidden, const Tensor& item_weight, const std::optional<Tensor>& user_weight,
    const Tensor& positives, const Tensor& negatives, const std::optional<Tensor>& users,
    const Tensor& cu_seqlens, const std::string& loss, double beta,
    const std::optional<Tensor>& log_q, bool corrects_positive) {
  const SampledLossArgs args(hidden, item_weight, user_weight, positives, negatives, users,
                             cu_seqlens, loss, beta, log_q, corrects_positive);
  const DeviceOf device(hidden);
  const SampledLogitsSizes& s = args.logits.size;
  const ScalarType wide = accumulator_type(args.logits.type);
  const Tensor losses = torch::stable::new_empty(hidden, {s.num_tokens, 2}, wide);
  const Tensor logits = args.logits.type == wide
                            ? args.grad_logits
                            : torch::stable::new_empty(hidden, {s.num_tokens, s.num_items}, wide);
  dispatch_floating("hidden", args.logits.type, [&]<class T>() {
    using A = Accumulator<T>;
    using Kernels = SampledLogitsKernels<T>;
    const SampledLoss<A> options = args.kernel_args<A>();
    check_cuda("sampled_loss",
               Kernels::forward(args.logits.kernel_args<T>(), &options,
                                mutable_data<T>(args.grad_logits), mutable_data<A>(logits),
                                mutable_data<A>(losses), device.note(), device.stream()));
    check_cuda("sampled_loss",
               Kernels::mean(data<A>(losses), s.num_tokens, mutable_data<A>(args.mean),
                             mutable_data<A>(args.inverse_count), device.stream()));
  });
  return {args.mean, args.grad_logits, args.inverse_count, args.items};
}

// Of either op.
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_logits, const Tensor& hidden,
                                            const Tensor& item_weight,
                                            const std::optional<Tensor>& user_weight,
                                            const Tensor& items, const std::optional<Tensor>& users,
                                            const Tensor& cu_seqlens,
                                            const std::optional<Tensor>& item_order,
                                            const std::optional<Tensor>& grad_loss,
                                            const std::optional<Tensor>& inverse_count) {
  const SampledLogitsArgs args(hidden, item_weight, user_weight, items, users, cu_seqlens);
  const SampledLogitsSizes& s = args.size;
  const Tensor grad = args.contiguous_grad(grad_logits, grad_loss, inverse_count);
  check_item_order(item_order, items);
  const DeviceOf device(hidden);
  const ScalarType wide = accumulator_type(args.type);
  const Tensor grad_hidden = torch::stable::new_empty(hidden, {s.num_tokens, s.width});
  // Side by side in one allocation, so that one kernel fills both with zeros.
  const int64_t of_items = s.item_rows * s.item_width, of_users = s.user_rows * s.user_width;
  Tensor tables = torch::stable::new_zeros(hidden, {of_items + of_users}, wide);
  const auto table = [&](int64_t from, int64_t rows, int64_t width) {
    return torch::stable::view(torch::stable::narrow(tables, 0, from, rows * width), {rows, width});
  };
  const Tensor grad_item = table(0, s.item_rows, s.item_width);
  const Tensor grad_user = table(of_items, s.user_rows, s.user_width);
  const Tensor grad_sum = torch::stable::new_empty(hidden, {s.num_tokens}, wide);
  dispatch_floating("hidden", args.type, [&]<class T>() {
    using A = Accumulator<T>;
    check_cuda("sampled_logits_backward",
               SampledLogitsKernels<T>::backward(
                   args.kernel_args<T>(), data<T>(grad), data<A>(grad_loss), data<A>(inverse_count),
                   data<int64_t>(item_order), mutable_data<T>(grad_hidden),
                   mutable_data<A>(grad_item), users ? mutable_data<A>(grad_user) : nullptr,
                   mutable_data<A>(grad_sum), device.note(), device.stream()));
  });
  return {grad_hidden, grad_item, grad_user};
}

}  // namespace
}  // namespace ssept::cuda

SSEPT_LIBRARY_IMPL(SSEPT_CUDA_KEY, m) {
  m.impl("sampled_logits", TORCH_BOX(&ssept::cuda::sampled_logits));
  m.impl("sampled_logits_backward", TORCH_BOX(&ssept::cuda::backward));
  m.impl("sampled_loss", TORCH_BOX(&ssept::cuda::sampled_loss));
  m.impl("sampled_loss_backward", TORCH_BOX(&ssept::cuda::backward));
}
