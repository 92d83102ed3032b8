// From the tensors of a `sampled_logits` call to checked, contiguous arguments for its kernels.
#pragma once
#include <cmath>

#include "common/checks.h"
#include "ops/sampled_logits/params.h"

namespace ssept {

class SampledLogitsArgs {
 public:
  SampledLogitsSizes size{};
  ScalarType type;

  SampledLogitsArgs(const Tensor& hidden, const Tensor& item_weight,
                    const std::optional<Tensor>& user_weight, const Tensor& items,
                    const std::optional<Tensor>& users, const Tensor& cu_seqlens)
      : type(hidden.scalar_type()) {
    check_devices({{"hidden", &hidden},
                   {"item_weight", &item_weight},
                   {"user_weight", pointer(user_weight)},
                   {"items", &items},
                   {"users", pointer(users)},
                   {"cu_seqlens", &cu_seqlens}});
    check_dims("hidden", hidden, 2);
    check_dims("item_weight", item_weight, 2);
    check_dims("items", items, 2);
    check_cu_seqlens("cu_seqlens", cu_seqlens);
    size.num_tokens = items.size(0);
    size.num_items = items.size(1);
    size.num_sequences = cu_seqlens.size(0) - 1;
    size.item_rows = item_weight.size(0);
    size.item_width = item_weight.size(1);
    check_users(user_weight, users, size.num_sequences, type);
    if (user_weight) {
      size.user_rows = user_weight->size(0);
      size.user_width = user_weight->size(1);
      size.user_scale = std::sqrt(static_cast<double>(size.user_width));
    }
    size.width = size.item_width + size.user_width;
    check_size("hidden", hidden, 0, size.num_tokens);
    check_size("hidden", hidden, 1, size.width);
    check_type("item_weight", item_weight, type);
    check_type("items", items, ScalarType::Long);

    hidden_ = torch::stable::contiguous(hidden);
    item_weight_ = torch::stable::contiguous(item_weight);
    items_ = torch::stable::contiguous(items);
    cu_seqlens_ = torch::stable::contiguous(cu_seqlens);
    if (user_weight) {
      user_weight_ = torch::stable::contiguous(*user_weight);
      users_ = torch::stable::contiguous(*users);
    }
  }

  // Valid while this object lives. T must have the size and layout of `type`.
  template <class T>
  SampledLogits<T> kernel_args() const {
    return {data<T>(hidden_),
            data<T>(item_weight_),
            user_weight_ ? data<T>(*user_weight_) : nullptr,
            data<int64_t>(items_),
            users_ ? data<int64_t>(*users_) : nullptr,
            data<int32_t>(cu_seqlens_),
            size};
  }

  // The gradient of the logits, checked and contiguous.
  Tensor contiguous_grad(const Tensor& grad_logits) const {
    check_devices({{"hidden", &hidden_}, {"grad_logits", &grad_logits}});
    check_dims("grad_logits", grad_logits, 2);
    check_size("grad_logits", grad_logits, 0, size.num_tokens);
    check_size("grad_logits", grad_logits, 1, size.num_items);
    check_type("grad_logits", grad_logits, type);
    return torch::stable::contiguous(grad_logits);
  }

 private:
  Tensor hidden_, item_weight_, items_, cu_seqlens_;
  std::optional<Tensor> user_weight_, users_;
};

}  // namespace ssept
