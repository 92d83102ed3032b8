// The arguments of a layer norm with the same gamma and beta for all rows, on either device. No
// torch headers: .cu files include this.
#pragma once
#include <cstdint>

namespace ssept {

template <class T>
struct RowNormBackward {
  const T* x;      // (N, D): what was normalised
  const T* gamma;  // (D)
  const T* grad;   // (N, D): of the result
  const T* more;   // (N, D): added to the gradient of x; or null
  T* grad_x;       // (N, D)
  int64_t num_rows, width;
  double eps;
};

}  // namespace ssept
