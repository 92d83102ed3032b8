// The arguments of the kernels of `causal_attention` and `multi_head_attention`, on either device.
// No torch headers: .cu files include this.
#pragma once
#include <cstdint>

#include "common/accumulator.h"
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

// What the forward writes, beside the residual that it adds.
template <class T>
struct CausalAttentionOutputs {
  T* out;               // (Nq, H, Dh)
  Accumulator<T>* lse;  // (Nq, H)
  // Of `multi_head_attention`, or null, (Nq, H, Dh).
  const T* residual = nullptr;
  T* sum = nullptr;  // out + residual
};

template <class T>
struct CausalAttentionGradients {
  const T *grad_out, *out;    // (Nq, H, Dh)
  const Accumulator<T>* lse;  // (Nq, H)
  Accumulator<T>* delta;      // (Nq, H), scratch: the sums of grad_out * out over a head's features
  T* grad_q;                  // (Nq, H, Dh)
  T *grad_k, *grad_v;         // (Nk, H, Dh), with grad_kv_row elements between tokens
  int64_t grad_kv_row;
  // Of `multi_head_attention`, or null.
  T* grad_residual = nullptr;           // (Nq, H, Dh): grad_out
  Accumulator<T>* grad_bias = nullptr;  // (3, H, Dh): sums of the gradients of q, k and v
};

}  // namespace ssept
