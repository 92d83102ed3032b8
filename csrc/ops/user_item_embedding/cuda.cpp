// `user_item_embedding` on CUDA: from tensors to launches.
#include <tuple>

#include "common/library.h"
#include "cuda/runtime.h"
#include "ops/user_item_embedding/args.h"
#include "ops/user_item_embedding/launch.h"

namespace ssept::cuda {
namespace {

Tensor user_item_embedding(const Tensor& item_weight, const std::optional<Tensor>& user_weight,
                           const Tensor& position_weight, const Tensor& items,
                           const std::optional<Tensor>& users, const Tensor& positions,
                           const Tensor& cu_seqlens, double dropout_p,
                           const std::optional<Tensor>& seed, int64_t site) {
  const UserItemEmbeddingArgs args(item_weight, user_weight, position_weight, items, users,
                                   positions, cu_seqlens, dropout_p, seed, site);
  const DeviceOf device(item_weight);
  const Tensor out = torch::stable::new_empty(item_weight, {args.size.num_tokens, args.size.width});
  dispatch_floating("item_weight", args.type, [&]<class T>() {
    check_cuda("user_item_embedding",
               UserItemEmbeddingKernels<T>::forward(args.kernel_args<T>(), mutable_data<T>(out),
                                                    device.note(), device.stream()));
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> user_item_embedding_backward(
    const Tensor& grad_out, const Tensor& item_weight, const std::optional<Tensor>& user_weight,
    const Tensor& position_weight, const Tensor& items, const std::optional<Tensor>& users,
    const Tensor& positions, const Tensor& cu_seqlens, double dropout_p,
    const std::optional<Tensor>& seed, int64_t site, const std::optional<Tensor>& item_order,
    const std::optional<Tensor>& more_item, const std::optional<Tensor>& more_user) {
  const UserItemEmbeddingArgs args(item_weight, user_weight, position_weight, items, users,
                                   positions, cu_seqlens, dropout_p, seed, site);
  const UserItemEmbeddingSizes& s = args.size;
  const Tensor grad = args.contiguous_grad(grad_out);
  check_item_order(item_order, items);
  const auto of_item = args.contiguous_more_item(more_item);
  const auto of_user = args.contiguous_more_user(more_user);
  const DeviceOf device(item_weight);
  const ScalarType wide = accumulator_type(args.type);
  const Tensor grad_item = torch::stable::new_empty(grad, {s.item_rows, s.item_width}, wide);
  const Tensor grad_user = torch::stable::new_empty(grad, {s.user_rows, s.user_width}, wide);
  const Tensor grad_position = torch::stable::new_empty(grad, {s.position_rows, s.width}, wide);
  dispatch_floating("item_weight", args.type, [&]<class T>() {
    using A = Accumulator<T>;
    check_cuda(
        "user_item_embedding_backward",
        UserItemEmbeddingKernels<T>::backward(
            args.kernel_args<T>(), data<T>(grad), data<int64_t>(item_order), data<T>(of_item),
            data<T>(of_user), mutable_data<A>(grad_item), mutable_data<A>(grad_user),
            mutable_data<A>(grad_position), device.note(), device.stream()));
  });
  return {grad_item, grad_user, grad_position};
}

}  // namespace
}  // namespace ssept::cuda

SSEPT_LIBRARY_IMPL(SSEPT_CUDA_KEY, m) {
  m.impl("user_item_embedding", TORCH_BOX(&ssept::cuda::user_item_embedding));
  m.impl("user_item_embedding_backward", TORCH_BOX(&ssept::cuda::user_item_embedding_backward));
}
