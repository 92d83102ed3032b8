// The arguments of a `causal_attention` kernel, on either device. No torch headers: .cu files
// include this.
#pragma once
#include <cstdint>

#include "common/dropout.h"

namespace ssept {

struct CausalAttentionSizes {
  int64_t num_queries;    // Nq
  int64_t num_keys;       // Nk
  int64_t num_sequences;  // B
  int64_t num_heads;      // H
  int64_t head_size;      // Dh
  int64_t max_seqlen_q;
  int64_t max_seqlen_k;
  double scale;
};

template <class T>
struct CausalAttention {
  const T* q;                   // (Nq, H, Dh)
  const T* k;                   // (Nk, H, Dh)
  const T* v;                   // (Nk, H, Dh)
  const int32_t* cu_seqlens_q;  // (B + 1)
  const int32_t* cu_seqlens_k;  // (B + 1)
  DropoutSite dropout;
  CausalAttentionSizes size;
};

}  // namespace ssept
