// `sampled_logits` on CUDA: from tensors to launches.
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
    check_cuda("sampled_logits",
               SampledLogitsKernels<T>::forward(args.kernel_args<T>(), mutable_data<T>(logits),
                                                device.note(), device.stream()));
  });
  return logits;
}

std::tuple<Tensor, Tensor, Tensor> sampled_logits_backward(
    const Tensor& grad_logits, const Tensor& hidden, const Tensor& item_weight,
    const std::optional<Tensor>& user_weight, const Tensor& items,
    const std::optional<Tensor>& users, const Tensor& cu_seqlens,
    const std::optional<Tensor>& item_order) {
  const SampledLogitsArgs args(hidden, item_weight, user_weight, items, users, cu_seqlens);
  const SampledLogitsSizes& s = args.size;
  const Tensor grad = args.contiguous_grad(grad_logits);
  check_item_order(item_order, items);
  const DeviceOf device(hidden);
  const ScalarType wide = accumulator_type(args.type);
  const Tensor grad_hidden = torch::stable::new_empty(hidden, {s.num_tokens, s.width});
  const Tensor grad_item = torch::stable::new_zeros(hidden, {s.item_rows, s.item_width}, wide);
  const Tensor grad_user = users
                               ? torch::stable::new_zeros(hidden, {s.user_rows, s.user_width}, wide)
                               : torch::stable::new_empty(hidden, {0, 0}, wide);
  const Tensor grad_sum = torch::stable::new_empty(hidden, {s.num_tokens}, wide);
  dispatch_floating("hidden", args.type, [&]<class T>() {
    using A = Accumulator<T>;
    check_cuda("sampled_logits_backward",
               SampledLogitsKernels<T>::backward(
                   args.kernel_args<T>(), data<T>(grad),
                   item_order ? data<int64_t>(*item_order) : nullptr, mutable_data<T>(grad_hidden),
                   mutable_data<A>(grad_item), users ? mutable_data<A>(grad_user) : nullptr,
                   mutable_data<A>(grad_sum), device.note(), device.stream()));
  });
  return {grad_hidden, grad_item, grad_user};
}

}  // namespace
}  // namespace ssept::cuda

SSEPT_LIBRARY_IMPL(SSEPT_CUDA_KEY, m) {
  m.impl("sampled_logits", TORCH_BOX(&ssept::cuda::sampled_logits));
  m.impl("sampled_logits_backward", TORCH_BOX(&ssept::cuda::sampled_logits_backward));
}
