// What the CPU kernels of `sampled_logits`, `sampled_loss` and `shared_loss` share: users, checks,
// the mean.
#pragma once
#include <algorithm>
#include <vector>

#include "cpu/occurrences.h"
#include "cpu/vector_ops.h"
#include "ops/sampled_logits/params.h"

namespace ssept::cpu {

// The user's row for a token, or null where it has no user.
template <class T>
SSEPT_INLINE const T* user_row(const SampledLogits<T>& in, int64_t b) {
  if (!in.users || in.users[b] == 0) return nullptr;
  return in.user_weight + in.users[b] * in.size.user_width;
}

template <class T, class A = Accumulator<T>>
SSEPT_SIMD_CLONES void backward_some_users(const SampledLogits<T>& in, const A* grad_sum,
                                           const Occurrences& sequences, A* grad_user,
                                           int64_t begin, int64_t end) {
  const auto& s = in.size;
  for (int64_t user = begin; user < end; ++user)
    for (int64_t o = sequences.start[user]; o < sequences.start[user + 1]; ++o) {
      const int64_t b = sequences.entries[o];
      for (int64_t n = in.cu_seqlens[b]; n < in.cu_seqlens[b + 1]; ++n)
        add_scaled(grad_user + user * s.user_width, grad_sum[n] * static_cast<A>(s.user_scale),
                   in.hidden + n * s.width + s.item_width, s.user_width);
    }
}

// sqrt(Du) · Σ grad_sum[n] · hidden[n, Di:] over each user's tokens.
template <class T, class A = Accumulator<T>>
void backward_users(const SampledLogits<T>& in, const A* grad_sum, A* grad_user) {
  const auto& s = in.size;
  if (!in.users) return;
  const Occurrences sequences(in.users, s.num_sequences, s.user_rows, /*first=*/1);
  torch::stable::parallel_for(
      0, s.user_rows, grain((1 + s.num_tokens / (s.user_rows + 1)) * s.user_width),
      [&](int64_t begin, int64_t end) {
        backward_some_users<T>(in, grad_sum, sequences, grad_user, begin, end);
      });
}

// Throws for offsets and users that make no sense; returns the number of tokens in sequences.
template <class T>
int64_t check_batch(const SampledLogits<T>& in) {
  check_offsets("cu_seqlens", in.cu_seqlens, in.size.num_sequences, in.size.num_tokens);
  check_users(in.users, in.size.num_sequences, in.size.user_rows);
  return in.cu_seqlens[in.size.num_sequences];
}

// The mean loss of the tokens that have a target, and 1 / their number, at most 1.
template <class A>
void average(const std::vector<A>& losses, const int64_t* positives, A* mean, A* inverse_count) {
  double sum = 0, count = 0;
  for (size_t n = 0; n < losses.size(); ++n) {
    sum += static_cast<double>(losses[n]);
    count += positives[n] != 0;
  }
  count = std::max(count, 1.0);
  *mean = static_cast<A>(sum / count);
  *inverse_count = static_cast<A>(1 / count);
}

}  // namespace ssept::cpu
