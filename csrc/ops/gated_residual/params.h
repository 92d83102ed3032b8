// The arguments of the kernels of `gated_residual` and `swiglu`, on either device. No torch
// headers: .cu files include this.
#pragma once
#include <cstdint>

#include "common/dropout.h"

namespace ssept {

// x + sigmoid(gate) * dropout(y), or without the gate.
template <class T>
struct GatedResidual {
  const T* x;     // (N, C); in a backward, the gradient
  const T* y;     // (N, C); null in a backward without a gate
  const T* gate;  // (N, C), or null
  DropoutSite dropout;
  int64_t num_rows, width;  // N, C
};

// dropout(silu(a) * b), where a and b are the halves of each row of u.
template <class T>
struct Swiglu {
  const T* u;  // (N, 2 C)
  DropoutSite dropout;
  int64_t num_rows, width;  // N, C
};

}  // namespace ssept
