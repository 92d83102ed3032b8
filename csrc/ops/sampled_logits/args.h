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
    item_weight_ = contiguous("item_weight", item_weight, {kAnySize, kAnySize}, type);
    items_ = contiguous("items", items, {kAnySize, kAnySize}, ScalarType::Long);
    cu_seqlens_ = contiguous_cu_seqlens("cu_seqlens", cu_seqlens);
    size.num_tokens = items.size(0);
    size.num_items = items.size(1);
    size.num_sequences = cu_seqlens.size(0) - 1;
    size.item_rows = item_weight.size(0);
    size.item_width = item_weight.size(1);
    users_ = Users(user_weight, users, size.num_sequences, type);
    size.user_rows = users_.rows;
    size.user_width = users_.width;
    size.user_scale = std::sqrt(static_cast<double>(size.user_width));
    size.width = size.item_width + size.user_width;
    hidden_ = contiguous("hidden", hidden, {size.num_tokens, size.width}, type);
  }

  // Valid while this object lives. T must have the size and layout of `type`.
  template <class T>
  SampledLogits<T> kernel_args() const {
    return {data<T>(hidden_),
            data<T>(item_weight_),
            users_.weight ? data<T>(*users_.weight) : nullptr,
            data<int64_t>(items_),
            users_.ids ? data<int64_t>(*users_.ids) : nullptr,
            data<int32_t>(cu_seqlens_),
            size};
  }

  // The gradient of the logits, checked and contiguous.
  Tensor contiguous_grad(const Tensor& grad_logits) const {
    check_devices({{"hidden", &hidden_}, {"grad_logits", &grad_logits}});
    return contiguous("grad_logits", grad_logits, {size.num_tokens, size.num_items}, type);
  }

 private:
  Tensor hidden_, item_weight_, items_, cu_seqlens_;
  Users users_;
};

}  // namespace ssept
