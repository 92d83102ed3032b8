// The arguments of a `position_layer_norm` kernel, on either device. No torch headers: .cu files
// include this.
#pragma once
#include <cstdint>

namespace ssept {

template <class T>
struct PositionLayerNorm {
  const T* x;                 // (N, D)
  const T* gamma;             // (T, D)
  const T* beta;              // (T, D)
  const int64_t* positions;   // (N)
  const int32_t* cu_seqlens;  // (B + 1)
  int64_t num_tokens, width, position_rows, num_sequences;
  double eps;
  bool by_position;  // or all tokens have the one row of gamma and beta
};

}  // namespace ssept
