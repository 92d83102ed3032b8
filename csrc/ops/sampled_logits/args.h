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

// What is to be made of logits.
class LossOptions {
 public:
  LossOptions(const std::string& loss, double beta, const std::optional<Tensor>& log_q,
              bool corrects_positive, const SampledLogitsArgs& logits)
      : beta_(beta), corrects_positive_(corrects_positive) {
    check(loss == "bce" || loss == "bpr" || loss == "sampled_softmax",
          "loss must be bce, bpr or sampled_softmax, got ", loss);
    loss_ = loss == "bce" ? Loss::kBce : loss == "bpr" ? Loss::kBpr : Loss::kSampledSoftmax;
    check(std::isfinite(beta), "beta must be finite, got ", beta);
    if (log_q)
      log_q_ = contiguous("log_q", *log_q, {logits.size.item_rows}, accumulator_type(logits.type));
  }

  // Valid while this object and the tensors live.
  template <class A>
  SampledLoss<A> kernel_args(const Tensor& positives, const Tensor& negatives,
                             int64_t* items) const {
    const double num_drawn = corrects_positive_ ? 1 : static_cast<double>(negatives.size(1));
    return {data<int64_t>(positives),
            data<int64_t>(negatives),
            items,
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
        options_(loss, beta, log_q, corrects_positive, logits) {
    check_devices({{"hidden", &hidden},
                   {"positives", &positives},
                   {"negatives", &negatives},
                   {"log_q", pointer(log_q)}});
    const ScalarType wide = accumulator_type(logits.type);
    mean = torch::stable::new_empty(hidden, {}, wide);
    grad_logits = torch::stable::new_empty(hidden, {logits.size.num_tokens, logits.size.num_items});
    inverse_count = torch::stable::new_empty(hidden, {}, wide);
  }

  // Valid while this object lives.
  template <class A>
  SampledLoss<A> kernel_args() const {
    return options_.kernel_args<A>(positives_, negatives_, mutable_data<int64_t>(items));
  }

 private:
  LossOptions options_;
};

// Those of `shared_loss`, and its outputs: gradients of the sum of the tokens' losses.
class SharedLossArgs {
  Tensor positives_, negatives_;

 public:
  SampledLogitsArgs logits;
  int64_t num_sets, num_negatives, max_seqlen;
  Tensor mean, grad_hidden, grad_item, grad_user, inverse_count;

  SharedLossArgs(const Tensor& hidden, const Tensor& item_weight,
                 const std::optional<Tensor>& user_weight, const Tensor& positives,
                 const Tensor& negatives, const std::optional<Tensor>& users,
                 const Tensor& cu_seqlens, int64_t longest, const std::string& loss, double beta,
                 const std::optional<Tensor>& log_q, bool corrects_positive)
      : positives_(contiguous("positives", positives, {kAnySize}, ScalarType::Long)),
        negatives_(contiguous("negatives", negatives, {kAnySize, kAnySize}, ScalarType::Long)),
        logits(hidden, item_weight, user_weight, torch::stable::unsqueeze(positives_, 1), users,
               cu_seqlens),
        num_sets(negatives.size(0)),
        num_negatives(negatives.size(1)),
        max_seqlen(longest),
        options_(loss, beta, log_q, corrects_positive, logits) {
    check_devices({{"hidden", &hidden},
                   {"positives", &positives},
                   {"negatives", &negatives},
                   {"log_q", pointer(log_q)}});
    const SampledLogitsSizes& s = logits.size;
    check(num_sets == 1 || num_sets == s.num_sequences, "negatives must have 1 or ",
          s.num_sequences, " rows, got shape (", num_sets, ", ", num_negatives, ")");
    check(max_seqlen >= 0, "max_seqlen must be at least 0, got ", max_seqlen);
    const ScalarType wide = accumulator_type(logits.type);
    mean = torch::stable::new_empty(hidden, {}, wide);
    grad_hidden = torch::stable::new_empty(hidden, {s.num_tokens, s.width});
    grad_item = torch::stable::new_zeros(hidden, {s.item_rows, s.item_width}, wide);
    grad_user = torch::stable::new_zeros(hidden, {s.user_rows, s.user_width}, wide);
    inverse_count = torch::stable::new_empty(hidden, {}, wide);
  }

  // Valid while this object lives.
  template <class A>
  SampledLoss<A> kernel_args() const {
    return options_.kernel_args<A>(positives_, negatives_, nullptr);
  }

 private:
  LossOptions options_;
};

}  // namespace ssept
