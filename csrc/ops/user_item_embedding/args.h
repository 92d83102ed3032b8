// From the tensors of a `user_item_embedding` call to checked, contiguous arguments for its
// kernels.
#pragma once
#include <cmath>

#include "common/dropout_args.h"
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
    check_dims("item_weight", item_weight, 2);
    check_dims("position_weight", position_weight, 2);
    check_dims("items", items, 1);
    check_dims("positions", positions, 1);
    check_cu_seqlens("cu_seqlens", cu_seqlens);
    size.num_tokens = items.size(0);
    size.num_sequences = cu_seqlens.size(0) - 1;
    size.item_rows = item_weight.size(0);
    size.item_width = item_weight.size(1);
    size.item_scale = std::sqrt(static_cast<double>(size.item_width));
    check_users(user_weight, users, size.num_sequences, type);
    if (user_weight) {
      size.user_rows = user_weight->size(0);
      size.user_width = user_weight->size(1);
      size.user_scale = std::sqrt(static_cast<double>(size.user_width));
    }
    size.width = size.item_width + size.user_width;
    size.position_rows = position_weight.size(0);
    check_size("position_weight", position_weight, 1, size.width);
    check_type("position_weight", position_weight, type);
    check_size("positions", positions, 0, size.num_tokens);
    check_type("items", items, ScalarType::Long);
    check_type("positions", positions, ScalarType::Long);

    item_weight_ = torch::stable::contiguous(item_weight);
    position_weight_ = torch::stable::contiguous(position_weight);
    items_ = torch::stable::contiguous(items);
    positions_ = torch::stable::contiguous(positions);
    cu_seqlens_ = torch::stable::contiguous(cu_seqlens);
    if (user_weight) {
      user_weight_ = torch::stable::contiguous(*user_weight);
      users_ = torch::stable::contiguous(*users);
    }
    if (dropout_p > 0) seed_ = *seed;
  }

  // Valid while this object lives. T must have the size and layout of `type`.
  template <class T>
  UserItemEmbedding<T> kernel_args() const {
    return {data<T>(item_weight_),
            user_weight_ ? data<T>(*user_weight_) : nullptr,
            data<T>(position_weight_),
            data<int64_t>(items_),
            users_ ? data<int64_t>(*users_) : nullptr,
            data<int64_t>(positions_),
            data<int32_t>(cu_seqlens_),
            seed_ ? data<int64_t>(*seed_) : nullptr,
            dropout_,
            size};
  }

  // The gradient of the output, checked and contiguous.
  Tensor contiguous_grad(const Tensor& grad) const {
    check_devices({{"item_weight", &item_weight_}, {"grad", &grad}});
    check_dims("grad", grad, 2);
    check_size("grad", grad, 0, size.num_tokens);
    check_size("grad", grad, 1, size.width);
    check_type("grad", grad, type);
    return torch::stable::contiguous(grad);
  }

 private:
  Tensor item_weight_, position_weight_, items_, positions_, cu_seqlens_;
  std::optional<Tensor> user_weight_, users_, seed_;
  DropoutSite dropout_;
};

}  // namespace ssept
