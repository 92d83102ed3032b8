// The arguments of a `sampled_logits` or `sampled_loss` kernel, on either device. No torch headers:
// .cu files include this.
#pragma once
#include <cstdint>

namespace ssept {

struct SampledLogitsSizes {
  int64_t num_tokens;     // N
  int64_t num_items;      // K, scored for each token
  int64_t num_sequences;  // B
  int64_t item_width;     // Di
  int64_t user_width;     // Du, 0 without users
  int64_t width;          // Di + Du
  int64_t item_rows;      // I + 1
  int64_t user_rows;      // U + 1, 0 without users
  double user_scale;      // sqrt(Du)
};

template <class T>
struct SampledLogits {
  const T* hidden;            // (N, Di + Du)
  const T* item_weight;       // (I + 1, Di)
  const T* user_weight;       // (U + 1, Du), or null
  const int64_t* items;       // (N, K)
  const int64_t* users;       // (B), or null
  const int32_t* cu_seqlens;  // (B + 1)
  SampledLogitsSizes size;
};

enum class Loss { kBce, kBpr, kSampledSoftmax };

template <class A>
struct SampledLoss {
  const int64_t* positives;  // (N)
  const int64_t* negatives;  // (N, K - 1)
  int64_t* items;            // (N, K), to be filled in for the logits: both, side by side
  Loss loss;
  A beta;                  // of kBce: the weight of the positive's term
  const A* log_q;          // (I + 1), to be subtracted from the logits; or null
  A log_num_drawn;         // to be subtracted with log_q
  bool corrects_positive;  // or only the negatives
};

}  // namespace ssept
