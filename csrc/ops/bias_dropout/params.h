// The arguments of a `bias_dropout` kernel, on either device. No torch headers: .cu files include
// this.
#pragma once
#include <cstdint>

#include "common/dropout.h"

namespace ssept {

template <class T>
struct BiasDropout {
  const T* x;         // (N, C)
  const T* bias;      // (C)
  const T* residual;  // (N, C), or null
  DropoutSite dropout;
  bool relu;
  int64_t num_rows, width;  // N, C
};

template <class T>
struct BiasDropoutBackward {
  const T* grad;  // (N, C)
  const T* out;   // (N, C), what the forward gave; read only where there is a ReLU
  DropoutSite dropout;
  bool relu;
  int64_t num_rows, width;  // N, C
};

}  // namespace ssept
