// The arguments of a `user_item_embedding` kernel, on either device. No torch headers: .cu files
// include this.
#pragma once
#include <cstdint>

#include "common/dropout.h"

namespace ssept {

struct UserItemEmbeddingSizes {
  int64_t num_tokens;     // N
  int64_t num_sequences;  // B
  int64_t item_width;     // Di
  int64_t user_width;     // Du, 0 without users
  int64_t width;          // Di + Du
  int64_t item_rows;      // I + 1
  int64_t user_rows;      // U + 1, 0 without users
  int64_t position_rows;  // T
  double item_scale;      // sqrt(Di)
  double user_scale;      // sqrt(Du)
};

template <class T>
struct UserItemEmbedding {
  const T* item_weight;       // (I + 1, Di)
  const T* user_weight;       // (U + 1, Du), or null
  const T* position_weight;   // (T, Di + Du)
  const int64_t* items;       // (N)
  const int64_t* users;       // (B), or null
  const int64_t* positions;   // (N)
  const int32_t* cu_seqlens;  // (B + 1)
  DropoutSite dropout;
  UserItemEmbeddingSizes size;
};

}  // namespace ssept
