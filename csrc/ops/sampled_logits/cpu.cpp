// CPU kernels of `sampled_logits`. Tokens are split over threads; the table's gradient is summed
// item by item over lists sorted by item, so that it does not depend on the number of threads.
#include <tuple>

#include "common/library.h"
#include "cpu/occurrences.h"
#include "cpu/vector_ops.h"
#include "ops/sampled_logits/args.h"

namespace ssept::cpu {
namespace {

// The user's row for a token, or null where it has no user.
template <class T>
SSEPT_INLINE const T* user_row(const SampledLogits<T>& in, int64_t b) {
  if (!in.users || in.users[b] == 0) return nullptr;
  return in.user_weight + in.users[b] * in.size.user_width;
}

template <class T, class A = Accumulator<T>>
SSEPT_SIMD_CLONES void forward(const SampledLogits<T>& in, T* logits, int64_t begin, int64_t end,
                               BadId& bad_item) {
  const auto& s = in.size;
  std::vector<A> h(s.width);
  SequenceCursor sequence(in.cu_seqlens, s.num_sequences, begin);
  for (int64_t n = begin; n < std::min<int64_t>(end, in.cu_seqlens[s.num_sequences]); ++n) {
    for (int64_t i = 0; i < s.width; ++i) h[i] = static_cast<A>(in.hidden[n * s.width + i]);
    A user_term = 0;
    if (const T* user = user_row(in, sequence.at(n)))
      user_term = dot(h.data() + s.item_width, user, s.user_width) * static_cast<A>(s.user_scale);
    for (int64_t k = 0; k < s.num_items; ++k) {
      const int64_t item = in.items[n * s.num_items + k];
      A logit = 0;
      if (bad_item.usable(item, s.item_rows))
        logit = user_term + dot(h.data(), in.item_weight + item * s.item_width, s.item_width);
      logits[n * s.num_items + k] = static_cast<T>(logit);
    }
  }
}

// grad_hidden, and for each token the sum of its logits' gradients, which is all the user term
// needs.
template <class T, class A = Accumulator<T>>
SSEPT_SIMD_CLONES void backward_hidden(const SampledLogits<T>& in, const T* grad, T* grad_hidden,
                                       A* grad_sum, int64_t begin, int64_t end, BadId& bad_item) {
  const auto& s = in.size;
  std::vector<A> sum(s.width);
  SequenceCursor sequence(in.cu_seqlens, s.num_sequences, begin);
  for (int64_t n = begin; n < std::min<int64_t>(end, in.cu_seqlens[s.num_sequences]); ++n) {
    std::fill(sum.begin(), sum.end(), A(0));
    A total = 0;
    for (int64_t k = 0; k < s.num_items; ++k) {
      const int64_t item = in.items[n * s.num_items + k];
      if (!bad_item.usable(item, s.item_rows)) continue;
      const A g = static_cast<A>(grad[n * s.num_items + k]);
      total += g;
      add_scaled(sum.data(), g, in.item_weight + item * s.item_width, s.item_width);
    }
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
template <class T, class A = Accumulator<T>>
SSEPT_SIMD_CLONES void backward_items(const SampledLogits<T>& in, const T* grad,
                                      const BlockedOccurrences& occurrences, A* grad_item,
                                      int64_t begin, int64_t end) {
  const auto& s = in.size;
  for (int64_t block = 0; block < std::ssize(occurrences.blocks); ++block) {
    const auto& [start, entries] = occurrences.blocks[block];
    const int64_t first_token = block * occurrences.block_tokens;
    const T* block_grad = grad + first_token * s.num_items;
    const T* block_hidden = in.hidden + first_token * s.width;
    for (int64_t item = begin; item < end; ++item)
      for (int64_t o = start[item]; o < start[item + 1]; ++o)
        add_scaled(grad_item + item * s.item_width, static_cast<A>(block_grad[entries[o]]),
                   block_hidden + entries[o] / s.num_items * s.width, s.item_width);
  }
}

template <class T, class A = Accumulator<T>>
SSEPT_SIMD_CLONES void backward_users(const SampledLogits<T>& in, const A* grad_sum,
                                      const Occurrences& sequences, A* grad_user, int64_t begin,
                                      int64_t end) {
  const auto& s = in.size;
  for (int64_t user = begin; user < end; ++user)
    for (int64_t o = sequences.start[user]; o < sequences.start[user + 1]; ++o) {
      const int64_t b = sequences.entries[o];
      for (int64_t n = in.cu_seqlens[b]; n < in.cu_seqlens[b + 1]; ++n)
        add_scaled(grad_user + user * s.user_width, grad_sum[n] * static_cast<A>(s.user_scale),
                   in.hidden + n * s.width + s.item_width, s.user_width);
    }
}

Tensor sampled_logits(const Tensor& hidden, const Tensor& item_weight,
                      const std::optional<Tensor>& user_weight, const Tensor& items,
                      const std::optional<Tensor>& users, const Tensor& cu_seqlens) {
  const SampledLogitsArgs args(hidden, item_weight, user_weight, items, users, cu_seqlens);
  const auto& s = args.size;
  const Tensor logits = torch::stable::new_empty(hidden, {s.num_tokens, s.num_items});
  BadId bad_item;
  dispatch_floating("hidden", args.type, [&]<class T>() {
    const auto in = args.kernel_args<T>();
    check_offsets("cu_seqlens", in.cu_seqlens, s.num_sequences, s.num_tokens);
    check_users(in.users, s.num_sequences, s.user_rows);
    zero_rows_from(logits, in.cu_seqlens[s.num_sequences]);
    torch::stable::parallel_for(0, s.num_tokens, grain(s.num_items * s.width),
                                [&](int64_t begin, int64_t end) {
                                  forward<T>(in, mutable_data<T>(logits), begin, end, bad_item);
                                });
  });
  bad_item.raise("items", s.item_rows);
  return logits;
}

std::tuple<Tensor, Tensor, Tensor> sampled_logits_backward(
    const Tensor& grad_logits, const Tensor& hidden, const Tensor& item_weight,
    const std::optional<Tensor>& user_weight, const Tensor& items,
    const std::optional<Tensor>& users, const Tensor& cu_seqlens,
    const std::optional<Tensor>& /*item_order: this kernel sorts for itself*/) {
  const SampledLogitsArgs args(hidden, item_weight, user_weight, items, users, cu_seqlens);
  const auto& s = args.size;
  const Tensor grad = args.contiguous_grad(grad_logits);
  const ScalarType wide = accumulator_type(args.type);
  const Tensor grad_hidden = torch::stable::new_empty(hidden, {s.num_tokens, s.width});
  const Tensor grad_item = torch::stable::new_zeros(hidden, {s.item_rows, s.item_width}, wide);
  const Tensor grad_user = torch::stable::new_zeros(hidden, {s.user_rows, s.user_width}, wide);
  BadId bad_item;
  dispatch_floating("hidden", args.type, [&]<class T>() {
    using A = Accumulator<T>;
    const auto in = args.kernel_args<T>();
    check_offsets("cu_seqlens", in.cu_seqlens, s.num_sequences, s.num_tokens);
    check_users(in.users, s.num_sequences, s.user_rows);
    zero_rows_from(grad_hidden, in.cu_seqlens[s.num_sequences]);
    std::vector<A> grad_sum(s.num_tokens);
    torch::stable::parallel_for(
        0, s.num_tokens, grain(s.num_items * s.width), [&](int64_t begin, int64_t end) {
          backward_hidden<T>(in, data<T>(grad), mutable_data<T>(grad_hidden), grad_sum.data(),
                             begin, end, bad_item);
        });
    bad_item.raise("items", s.item_rows);
    const BlockedOccurrences occurrences(in.items, in.cu_seqlens[s.num_sequences], s);
    const int64_t mean_occurrences = s.num_tokens * s.num_items / (s.item_rows + 1);
    torch::stable::parallel_for(0, s.item_rows, grain((1 + mean_occurrences) * s.item_width),
                                [&](int64_t begin, int64_t end) {
                                  backward_items<T>(in, data<T>(grad), occurrences,
                                                    mutable_data<A>(grad_item), begin, end);
                                });
    if (!in.users) return;
    const Occurrences sequences(in.users, s.num_sequences, s.user_rows, /*first=*/1);
    torch::stable::parallel_for(
        0, s.user_rows, grain((1 + s.num_tokens / (s.user_rows + 1)) * s.user_width),
        [&](int64_t begin, int64_t end) {
          backward_users<T>(in, grad_sum.data(), sequences, mutable_data<A>(grad_user), begin, end);
        });
  });
  return {grad_hidden, grad_item, grad_user};
}

}  // namespace
}  // namespace ssept::cpu

SSEPT_LIBRARY_IMPL(CPU, m) {
  m.impl("sampled_logits", TORCH_BOX(&ssept::cpu::sampled_logits));
  m.impl("sampled_logits_backward", TORCH_BOX(&ssept::cpu::sampled_logits_backward));
}
