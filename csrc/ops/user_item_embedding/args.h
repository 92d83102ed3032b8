// From the tensors of a `user_item_embedding` call to checked, contiguous arguments for its
// kernels.
#pragma once
#include <cmath>

#include "common/checks.h"
#include "ops/user_item_embedding/params.h"

namespace ssept {

class UserItemEmbeddingArgs {
 public:
  UserItemEmbeddingSizes size{};
  ScalarType type;

  UserItemEmbeddingArgs(const Tensor& item_weight, const std::optional<Tensor>& user_weight,
                        const Tensor& position_weight, const Tensor& items,
                        const std::optional<Tensor>& users, const Tensor& positions,
                        const Tensor& cu_seqlens, double dropout_p,
                        const std::optional<Tensor>& seed, int64_t site)
      : type(item_weight.scalar_type()), dropout_(check_dropout(dropout_p, seed, site)) {
    check_devices({{"item_weight", &item_weight},
                   {"user_weight", pointer(user_weight)},
                   {"position_weight", &position_weight},
                   {"items", &items},
                   {"users", pointer(users)},
                   {"positions", &positions},
                   {"cu_seqlens", &cu_seqlens},
                   {"seed", dropout_p > 0 ? pointer(seed) : nullptr}});
    item_weight_ = contiguous("item_weight", item_weight, {kAnySize, kAnySize}, type);
    items_ = contiguous("items", items, {kAnySize}, ScalarType::Long);
    cu_seqlens_ = contiguous_cu_seqlens("cu_seqlens", cu_seqlens);
    size.num_tokens = items.size(0);
    size.num_sequences = cu_seqlens.size(0) - 1;
    size.item_rows = item_weight.size(0);
    size.item_width = item_weight.size(1);
    size.item_scale = std::sqrt(static_cast<double>(size.item_width));
    users_ = Users(user_weight, users, size.num_sequences, type);
    size.user_rows = users_.rows;
    size.user_width = users_.width;
    size.user_scale = std::sqrt(static_cast<double>(size.user_width));
    size.width = size.item_width + size.user_width;
    position_weight_ = contiguous("position_weight", position_weight, {kAnySize, size.width}, type);
    size.position_rows = position_weight.size(0);
    positions_ = contiguous("positions", positions, {size.num_tokens}, ScalarType::Long);
  }

  // Valid while this object lives. T must have the size and layout of `type`.
  template <class T>
  UserItemEmbedding<T> kernel_args() const {
    return {data<T>(item_weight_),
            users_.weight ? data<T>(*users_.weight) : nullptr,
            data<T>(position_weight_),
            data<int64_t>(items_),
            users_.ids ? data<int64_t>(*users_.ids) : nullptr,
            data<int64_t>(positions_),
            data<int32_t>(cu_seqlens_),
            dropout_,
            size};
  }

  // The gradient of the output, checked and contiguous.
  Tensor contiguous_grad(const Tensor& grad) const {
    check_devices({{"item_weight", &item_weight_}, {"grad", &grad}});
    return contiguous("grad", grad, {size.num_tokens, size.width}, type);
  }

  // What is added to the gradients of tables, checked and contiguous.
  std::optional<Tensor> contiguous_more_item(const std::optional<Tensor>& more) const {
    return contiguous_more("more_item", more, size.item_rows, size.item_width);
  }
  std::optional<Tensor> contiguous_more_user(const std::optional<Tensor>& more) const {
    return contiguous_more("more_user", more, size.user_rows, size.user_width);
  }

 private:
  std::optional<Tensor> contiguous_more(const char* name, const std::optional<Tensor>& more,
                                        int64_t rows, int64_t width) const {
    if (!more) return {};
    check_devices({{"item_weight", &item_weight_}, {name, &*more}});
    return contiguous(name, *more, {rows, width}, type);
  }

  Tensor item_weight_, position_weight_, items_, positions_, cu_seqlens_;
  Users users_;
  DropoutSite dropout_;
};

}  // namespace ssept
