// From the tensors of a `sampled_logits` or `sampled_loss` call to checked, contiguous arguments
// for its kernels.
#pragma once
#include <cmath>

#include "common/dtype.h"
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
            data<T>(users_.weight),
            data<int64_t>(items_),
            data<int64_t>(users_.ids),
            data<int32_t>(cu_seqlens_),
            size};
  }

  // The gradient of the logits, checked and contiguous, which is to be multiplied by the other two.
  Tensor contiguous_grad(const Tensor& grad_logits, const std::optional<Tensor>& grad_loss,
                         const std::optional<Tensor>& inverse_count) const {
    check(grad_loss.has_value() == inverse_count.has_value(),
          "grad_loss and inverse_count must be given together");
    check_devices({{"hidden", &hidden_},
                   {"grad_logits", &grad_logits},
                   {"grad_loss", pointer(grad_loss)},
                   {"inverse_count", pointer(inverse_count)}});
    if (grad_loss) contiguous("grad_loss", *grad_loss, {}, accumulator_type(type));
    if (inverse_count) contiguous("inverse_count", *inverse_count, {}, accumulator_type(type));
    return contiguous("grad_logits", grad_logits, {size.num_tokens, size.num_items}, type);
  }

 private:
  Tensor hidden_, item_weight_, items_, cu_seqlens_;
  Users users_;
};

// Those of `sampled_loss`, and its outputs.
class SampledLossArgs {
  Tensor negatives_, positives_;

 public:
  Tensor items;  // for the kernel to fill in: each token's positive, and then its negatives
  SampledLogitsArgs logits;
  Tensor mean, grad_logits, inverse_count;

  SampledLossArgs(const Tensor& hidden, const Tensor& item_weight,
                  const std::optional<Tensor>& user_weight, const Tensor& positives,
                  const Tensor& negatives, const std::optional<Tensor>& users,
                  const Tensor& cu_seqlens, const std::string& loss, double beta,
                  const std::optional<Tensor>& log_q, bool corrects_positive)
      : negatives_(contiguous("negatives", negatives, {kAnySize, kAnySize}, ScalarType::Long)),
        positives_(contiguous("positives", positives, {negatives.size(0)}, ScalarType::Long)),
        items(torch::stable::new_empty(hidden, {negatives.size(0), negatives.size(1) + 1},
                                       ScalarType::Long)),
        logits(hidden, item_weight, user_weight, items, users, cu_seqlens),
        beta_(beta),
        corrects_positive_(corrects_positive) {
    check_devices({{"hidden", &hidden},
                   {"positives", &positives},
                   {"negatives", &negatives},
                   {"log_q", pointer(log_q)}});
    check(loss == "bce" || loss == "bpr" || loss == "sampled_softmax",
          "loss must be bce, bpr or sampled_softmax, got ", loss);
    loss_ = loss == "bce" ? Loss::kBce : loss == "bpr" ? Loss::kBpr : Loss::kSampledSoftmax;
    check(std::isfinite(beta), "beta must be finite, got ", beta);
    const ScalarType wide = accumulator_type(logits.type);
    if (log_q) log_q_ = contiguous("log_q", *log_q, {logits.size.item_rows}, wide);
    mean = torch::stable::new_empty(hidden, {}, wide);
    grad_logits = torch::stable::new_empty(hidden, {logits.size.num_tokens, logits.size.num_items});
    inverse_count = torch::stable::new_empty(hidden, {}, wide);
  }

  // Valid while this object lives.
  template <class A>
  SampledLoss<A> kernel_args() const {
    const double num_drawn =
        corrects_positive_ ? 1 : static_cast<double>(logits.size.num_items - 1);
    return {data<int64_t>(positives_),
            data<int64_t>(negatives_),
            mutable_data<int64_t>(items),
            loss_,
            static_cast<A>(beta_),
            data<A>(log_q_),
            static_cast<A>(std::log(num_drawn)),
            corrects_positive_};
  }

 private:
  Loss loss_;
  double beta_;
  std::optional<Tensor> log_q_;
  bool corrects_positive_;
};

}  // namespace ssept
