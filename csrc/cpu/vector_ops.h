// Loops over contiguous elements that compilers turn into SIMD, summed in the wider of both types.
#pragma once
#include <cstdint>

#include "cpu/parallel.h"

namespace ssept::cpu {

template <class T, class A>
SSEPT_INLINE A dot(const A* x, const T* y, int64_t n) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += x[i] * static_cast<A>(y[i]);
  return sum;
}

// y += a * x
template <class T, class A>
SSEPT_INLINE void add_scaled(A* y, A a, const T* x, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] += a * static_cast<A>(x[i]);
}

}  // namespace ssept::cpu
