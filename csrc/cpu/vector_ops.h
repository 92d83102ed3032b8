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

// Sets to zero what dropout drops of a row's columns; does not scale the rest.
template <class A>
SSEPT_INLINE void drop(A* x, int64_t n, const DropoutSite& dropout, int64_t seed, int64_t row,
                       int64_t first_column) {
  constexpr int64_t kQuads = 8;
  uint32_t words[4][kQuads];
  for (int64_t c0 = 0; c0 < n; c0 += 4 * kQuads) {
#pragma omp simd
    for (int64_t quad = 0; quad < kQuads; ++quad) {
      uint32_t word[4];
      dropout.words(seed, row, static_cast<uint32_t>((first_column + c0) / 4 + quad), word);
      for (int w = 0; w < 4; ++w) words[w][quad] = word[w];
    }
    const int64_t count = n - c0 < 4 * kQuads ? n - c0 : 4 * kQuads;
    for (int64_t c = 0; c < count; ++c)
      if (words[c % 4][c / 4] < dropout.threshold) x[c0 + c] = 0;
  }
}

}  // namespace ssept::cpu
