// `top_k` and `item_ranks` on CUDA: from tensors to launches.
#include <tuple>

#include "common/library.h"
#include "cuda/runtime.h"
#include "ops/top_k/args.h"
#include "ops/top_k/launch.h"

namespace ssept::cuda {
namespace {

std::tuple<Tensor, Tensor> top_k(const Tensor& queries, const Tensor& table, int64_t k,
                                 int64_t num_items, const std::optional<Tensor>& seen_items,
                                 const std::optional<Tensor>& seen_offsets,
                                 const std::optional<Tensor>& candidates,
                                 const std::optional<Tensor>& scale) {
  const TopKArgs args(queries, table, k, num_items, seen_items, seen_offsets, candidates, scale);
  check(k <= kMaxK, "k must be at most ", kMaxK, " on CUDA, got ", k);
  const DeviceOf device(queries);
  const int64_t parts = ranking_parts(args.num_queries(), args.num_items());
  const int64_t rows = parts == 1 ? 0 : parts * args.num_queries();
  const Tensor part_items = torch::stable::new_empty(queries, {rows, k}, ScalarType::Long);
  const Tensor part_scores = torch::stable::new_empty(queries, {rows, k});
  dispatch_table<__half, __nv_bfloat16>(args.type, [&]<class T>() {
    check_cuda(
        "top_k",
        launch_top_k(args.kernel_args<T>(), parts, mutable_data<int64_t>(part_items),
                     mutable_data<Accumulator<T>>(part_scores), device.note(), device.stream()));
  });
  return {args.items, args.scores};
}

std::tuple<Tensor, Tensor> item_ranks(const Tensor& queries, const Tensor& table,
                                      const Tensor& targets, int64_t num_items,
                                      const std::optional<Tensor>& target_scores,
                                      const std::optional<Tensor>& seen_items,
                                      const std::optional<Tensor>& seen_offsets,
                                      const std::optional<Tensor>& scale) {
  const ItemRanksArgs args(queries, table, targets, num_items, target_scores, seen_items,
                           seen_offsets, scale);
  const DeviceOf device(queries);
  const int64_t parts = ranking_parts(args.num_queries(), args.num_items());
  dispatch_table<__half, __nv_bfloat16>(args.type, [&]<class T>() {
    check_cuda("item_ranks",
               launch_item_ranks(args.kernel_args<T>(), parts, device.note(), device.stream()));
  });
  return {args.ranks, args.scores};
}

}  // namespace
}  // namespace ssept::cuda

SSEPT_LIBRARY_IMPL(SSEPT_CUDA_KEY, m) {
  m.impl("top_k", TORCH_BOX(&ssept::cuda::top_k));
  m.impl("item_ranks", TORCH_BOX(&ssept::cuda::item_ranks));
}
