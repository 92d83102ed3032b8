// CPU kernels of `sampled_logits` and `sampled_loss`. Tokens are split over threads; the table's
// gradient is summed item by item over lists sorted by item, so that it does not depend on the
// number of threads.
#include <tuple>

#include "common/library.h"
#include "cpu/occurrences.h"
#include "cpu/vector_ops.h"
#include "ops/sampled_logits/args.h"
#include "ops/sampled_logits/cpu_loss.h"
#include "ops/sampled_logits/cpu_tokens.h"

namespace ssept::cpu {
namespace {

// The logits of tokens begin..end-1; `out` has room for these. item_of(n, k) is the item in column
// k for token n, 0 where there is none to score.
template <class S, class T, class Out, class ItemOf, class A = Accumulator<T>>
SSEPT_INLINE void forward(const SampledLogits<T>& in, Out* out, int64_t begin, int64_t end,
                          ItemOf&& item_of) {
  const auto& s = in.size;
  const Buffer<A> h(s.width);
  SequenceCursor sequence(in.cu_seqlens, s.num_sequences, begin);
  for (int64_t n = begin; n < end; ++n) {
    for (int64_t i = 0; i < s.width; ++i) h.get()[i] = static_cast<A>(in.hidden[n * s.width + i]);
    A user_term = 0;
    if (const T* user = user_row(in, sequence.at(n)))
      user_term = dot<S>(h + s.item_width, user, s.user_width) * static_cast<A>(s.user_scale);
    for (int64_t k = 0; k < s.num_items; ++k) {
      const int64_t item = item_of(n, k);
      A logit = 0;
      if (item != 0)
        logit = user_term + dot<S>(h.get(), in.item_weight + item * s.item_width, s.item_width);
      *out++ = static_cast<Out>(logit);
    }
  }
}

// Of tokens begin..end-1: the losses, and their gradients with respect to the logits; zeros for a
// token without a target.
template <class S, class T, class A = Accumulator<T>>
SSEPT_INLINE void forward_loss(const SampledLogits<T>& in, const SampledLoss<A>& loss, A* losses,
                               T* grad, int64_t begin, int64_t end, BadId& bad_positive,
                               BadId& bad_negative) {
  const int64_t columns = in.size.num_items, at_once = std::max<int64_t>(1, 512 / columns);
  const Buffer<A> x(at_once * columns + kMaxLanes<A>), y(at_once * columns + kMaxLanes<A>);
  for (int64_t first = begin; first < end; first += at_once) {
    const int64_t last = std::min(first + at_once, end);
    forward<S>(in, x.get(), first, last, [&](int64_t n, int64_t k) SSEPT_INLINE_LAMBDA {
      const int64_t item = k == 0 ? loss.positives[n] : loss.negatives[n * (columns - 1) + k - 1];
      const bool usable = (k == 0 ? bad_positive : bad_negative).usable(item, in.size.item_rows);
      return loss.items[n * columns + k] = usable ? item : 0;
    });
    for (int64_t n = first; n < last; ++n) {
      A* logits = x + (n - first) * columns;
      for (int64_t k = loss.corrects_positive ? 0 : 1; loss.log_q && k < columns; ++k)
        logits[k] -= loss.log_q[loss.items[n * columns + k]] + loss.log_num_drawn;
      prepare_logits(loss.loss, logits, columns);
    }
    exponentials<S>(loss.loss, x.get(), y.get(), (last - first) * columns);
    for (int64_t n = first; n < last; ++n) {
      A* gradient = y + (n - first) * columns;
      losses[n] = finish_loss(loss, x + (n - first) * columns, gradient, columns);
      if (loss.items[n * columns] == 0) {
        losses[n] = 0;
        std::fill_n(gradient, columns, A(0));
      }
      for (int64_t k = 0; k < columns; ++k) grad[n * columns + k] = static_cast<T>(gradient[k]);
    }
  }
}

// grad_hidden, and for each token the sum of its logits' gradients, which is all the user term
// needs.
template <class S, class T, class A = Accumulator<T>>
SSEPT_INLINE void backward_hidden(const SampledLogits<T>& in, const T* grad, A factor,
                                  T* grad_hidden, A* grad_sum, int64_t begin, int64_t end,
                                  BadId& bad_item) {
  const auto& s = in.size;
  std::vector<A> sum(s.width);
  std::vector<std::pair<A, const T*>> terms(s.num_items);
  SequenceCursor sequence(in.cu_seqlens, s.num_sequences, begin);
  for (int64_t n = begin; n < end; ++n) {
    std::fill(sum.begin(), sum.end(), A(0));
    A total = 0;
    int64_t count = 0;
    for (int64_t k = 0; k < s.num_items; ++k) {
      const int64_t item = in.items[n * s.num_items + k];
      if (!bad_item.usable(item, s.item_rows)) continue;
      const A g = factor * static_cast<A>(grad[n * s.num_items + k]);
      total += g;
      terms[count++] = {g, in.item_weight + item * s.item_width};
    }
    add_all_scaled<S, T>(
        sum.data(), count, [&](int64_t i) SSEPT_INLINE_LAMBDA { return terms[i]; }, s.item_width);
    if (const T* user = user_row(in, sequence.at(n)))
      add_scaled(sum.data() + s.item_width, total * static_cast<A>(s.user_scale), user,
                 s.user_width);
    grad_sum[n] = total;
    for (int64_t i = 0; i < s.width; ++i) grad_hidden[n * s.width + i] = static_cast<T>(sum[i]);
  }
}

// Where each item occurs in each block of tokens. A block is as many tokens as score an item four
// times in the mean: the table's gradient passes by once a block, while the block's hidden states
// stay in cache.
struct BlockedOccurrences {
  int64_t block_tokens;
  std::vector<Occurrences> blocks;

  // `items` are (num_tokens, num_items), all below item_rows.
  BlockedOccurrences(const int64_t* items, int64_t num_tokens, const SampledLogitsSizes& s)
      : block_tokens(
            std::max<int64_t>(kMinTokens, 4 * s.item_rows / std::max<int64_t>(s.num_items, 1))),
        blocks((num_tokens + block_tokens - 1) / block_tokens) {
    torch::stable::parallel_for(0, std::ssize(blocks), 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block * block_tokens;
        const int64_t tokens = std::min(block_tokens, num_tokens - first);
        blocks[block] = Occurrences(items + first * s.num_items, tokens * s.num_items, s.item_rows,
                                    /*first=*/1);
      }
    });
  }

 private:
  static constexpr int64_t kMinTokens = 64;
};

// Adds up an item's gradients in the order of tokens, whatever the blocks.
template <class S, class T, class A = Accumulator<T>>
SSEPT_INLINE void backward_items(const SampledLogits<T>& in, const T* grad, A factor,
                                 const BlockedOccurrences& occurrences, A* grad_item, int64_t begin,
                                 int64_t end) {
  const auto& s = in.size;
  for (int64_t block = 0; block < std::ssize(occurrences.blocks); ++block) {
    const auto& [start, entries] = occurrences.blocks[block];
    const int64_t first_token = block * occurrences.block_tokens;
    const T* block_grad = grad + first_token * s.num_items;
    const T* block_hidden = in.hidden + first_token * s.width;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t* of_item = entries.data() + start[item];
      add_all_scaled<S, T>(
          grad_item + item * s.item_width, start[item + 1] - start[item],
          [&](int64_t i) SSEPT_INLINE_LAMBDA {
            return std::pair(factor * static_cast<A>(block_grad[of_item[i]]),
                             block_hidden + of_item[i] / s.num_items * s.width);
          },
          s.item_width);
    }
  }
}

Tensor sampled_logits(const Tensor& hidden, const Tensor& item_weight,
                      const std::optional<Tensor>& user_weight, const Tensor& items,
                      const std::optional<Tensor>& users, const Tensor& cu_seqlens) {
  const SampledLogitsArgs args(hidden, item_weight, user_weight, items, users, cu_seqlens);
  const auto& s = args.size;
  const Tensor logits = torch::stable::new_empty(hidden, {s.num_tokens, s.num_items});
  dispatch_floating("hidden", args.type, [&]<class T>() {
    const auto in = args.kernel_args<T>();
    const int64_t num_real = check_batch(in);
    zero_rows_from(logits, num_real);
    BadId bad_item;
    const auto some = [&](int64_t begin, int64_t end) {
      with_simd([&]<class S>(S) SSEPT_INLINE_LAMBDA {
        forward<S>(in, mutable_data<T>(logits) + begin * s.num_items, begin, end,
                   [&](int64_t n, int64_t k) SSEPT_INLINE_LAMBDA {
                     const int64_t item = in.items[n * s.num_items + k];
                     return bad_item.usable(item, s.item_rows) ? item : 0;
                   });
      });
    };
    torch::stable::parallel_for(0, num_real, grain(s.num_items * s.width), some);
    bad_item.raise("items", s.item_rows);
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
  const auto& s = args.logits.size;
  dispatch_floating("hidden", args.logits.type, [&]<class T>() {
    using A = Accumulator<T>;
    const auto in = args.logits.kernel_args<T>();
    const auto options = args.kernel_args<A>();
    const int64_t num_real = check_batch(in);
    zero_rows_from(args.grad_logits, num_real);
    zero_rows_from(args.items, num_real);
    std::vector<A> losses(num_real);
    BadId bad_positive, bad_negative;
    const auto some = [&](int64_t begin, int64_t end) {
      with_simd([&]<class S>(S) SSEPT_INLINE_LAMBDA {
        forward_loss<S>(in, options, losses.data(), mutable_data<T>(args.grad_logits), begin, end,
                        bad_positive, bad_negative);
      });
    };
    torch::stable::parallel_for(0, num_real, grain(s.num_items * s.width), some);
    bad_positive.raise("positives", s.item_rows);
    bad_negative.raise("negatives", s.item_rows);
    average(losses, options.positives, mutable_data<A>(args.mean),
            mutable_data<A>(args.inverse_count));
  });
  return {args.mean, args.grad_logits, args.inverse_count, args.items};
}

// Of either op.
std::tuple<Tensor, Tensor, Tensor> backward(
    const Tensor& grad_logits, const Tensor& hidden, const Tensor& item_weight,
    const std::optional<Tensor>& user_weight, const Tensor& items,
    const std::optional<Tensor>& users, const Tensor& cu_seqlens,
    const std::optional<Tensor>& /*item_order: this kernel sorts for itself*/,
    const std::optional<Tensor>& grad_loss, const std::optional<Tensor>& inverse_count) {
  const SampledLogitsArgs args(hidden, item_weight, user_weight, items, users, cu_seqlens);
  const auto& s = args.size;
  const Tensor grad = args.contiguous_grad(grad_logits, grad_loss, inverse_count);
  const ScalarType wide = accumulator_type(args.type);
  const Tensor grad_hidden = torch::stable::new_empty(hidden, {s.num_tokens, s.width});
  const Tensor grad_item = torch::stable::new_zeros(hidden, {s.item_rows, s.item_width}, wide);
  const Tensor grad_user = torch::stable::new_zeros(hidden, {s.user_rows, s.user_width}, wide);
  dispatch_floating("hidden", args.type, [&]<class T>() {
    using A = Accumulator<T>;
    const auto in = args.kernel_args<T>();
    const A factor = grad_loss ? *data<A>(grad_loss) * *data<A>(inverse_count) : A(1);
    const int64_t num_real = check_batch(in);
    zero_rows_from(grad_hidden, num_real);
    std::vector<A> grad_sum(num_real);
    BadId bad_item;
    const auto some_tokens = [&](int64_t begin, int64_t end) {
      with_simd([&]<class S>(S) SSEPT_INLINE_LAMBDA {
        backward_hidden<S>(in, data<T>(grad), factor, mutable_data<T>(grad_hidden), grad_sum.data(),
                           begin, end, bad_item);
      });
    };
    torch::stable::parallel_for(0, num_real, grain(s.num_items * s.width), some_tokens);
    bad_item.raise("items", s.item_rows);
    const BlockedOccurrences occurrences(in.items, num_real, s);
    const auto some_items = [&](int64_t begin, int64_t end) {
      with_simd([&]<class S>(S) SSEPT_INLINE_LAMBDA {
        backward_items<S>(in, data<T>(grad), factor, occurrences, mutable_data<A>(grad_item), begin,
                          end);
      });
    };
    const int64_t mean_occurrences = s.num_tokens * s.num_items / (s.item_rows + 1);
    torch::stable::parallel_for(0, s.item_rows, grain((1 + mean_occurrences) * s.item_width),
                                some_items);
    backward_users(in, grad_sum.data(), mutable_data<A>(grad_user));
  });
  return {grad_hidden, grad_item, grad_user};
}

}  // namespace
}  // namespace ssept::cpu

SSEPT_LIBRARY_IMPL(CPU, m) {
  m.impl("sampled_logits", TORCH_BOX(&ssept::cpu::sampled_logits));
  m.impl("sampled_logits_backward", TORCH_BOX(&ssept::cpu::backward));
  m.impl("sampled_loss", TORCH_BOX(&ssept::cpu::sampled_loss));
  m.impl("sampled_loss_backward", TORCH_BOX(&ssept::cpu::backward));
}
