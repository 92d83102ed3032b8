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

// Times between a query and a key are told apart by two buckets for each factor of 2: bucket 2 e of
// times in [2^e, 1.5 · 2^e), as float32, and bucket 2 e + 1 up to 2^(e + 1). Shorter than 1 counts
// as 1.
constexpr int64_t kTimeBuckets = 128;

// What a score has added for the distance between a query and a key, and for the time between.
template <class A>
struct RelativeBias {
  const A* position = nullptr;           // (H, num_positions), or null
  const A* time = nullptr;               // (H, kTimeBuckets), or null
  const int64_t* query_times = nullptr;  // (Nq), with `time`
  const int64_t* key_times = nullptr;    // (Nk), with `time`
  int64_t num_positions = 0;
};

template <class A>
bool has_bias(const RelativeBias<A>& bias) {
  return bias.position != nullptr || bias.time != nullptr;
}

// Kernels without a bias do not take it: a few bytes more of arguments, and ptxas spills registers.
template <class T>
struct CausalAttentionWithBias : CausalAttention<T> {
  RelativeBias<Accumulator<T>> bias;
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
  // Of the relative bias, where there is one, (H, num_positions) and (H, kTimeBuckets).
  Accumulator<T>*grad_position = nullptr, *grad_time = nullptr;
  // Of the kernels, for both: (H, bias_rows, num_positions + kTimeBuckets) zeros.
  Accumulator<T>* bias_partial = nullptr;
};

}  // namespace ssept
