// The arguments of `feed_forward`'s kernels, on either device. No torch headers: .cu files include
// this.
#pragma once
#include <cstdint>

#include "common/dropout.h"

namespace ssept {

// What follows a product: bias, ReLU or not, dropout, residual.
template <class T>
struct BiasDropout {
  const T* bias;      // (C)
  const T* residual;  // (N, C), or null
  DropoutSite dropout;
  bool relu;
  int64_t num_rows, width;  // N, C
};

// The layer norm of a result, unless gamma is null.
template <class T>
struct ResultNorm {
  const T* gamma;  // (C)
  const T* beta;   // (C)
  double eps;
  T* out;  // (N, C)
};

template <class T>
struct BiasDropoutBackward {
  const T* out;  // (N, C), what the forward gave where there is a ReLU, else null
  DropoutSite dropout;
  int64_t num_rows, width;  // N, C
};

}  // namespace ssept
