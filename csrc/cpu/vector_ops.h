// Loops over contiguous elements, summed in the wider of both types: some that compilers turn into
// SIMD, and some on the vectors of an S, a Simd.
#pragma once
#include <algorithm>
#include <cstdint>

#include "cpu/parallel.h"
#include "cpu/tiles.h"

namespace ssept::cpu {

// x · y
template <class S, class T, class U, class A = Accumulator<T>>
SSEPT_INLINE A dot(const T* x, const U* y, int64_t n) {
  if (!fits<S, A>(n)) return dot<Single<A>>(x, y, n);
  typename S::template Vec<A> products{};
  for_vectors<S, A>(n, [&](int64_t i, auto keep) SSEPT_INLINE_LAMBDA {
    products += keep(load_wide<S>(x + i) * load_wide<S>(y + i));
  });
  return horizontal_sum<S, A>(products);
}

// y += a * x
template <class T, class A>
SSEPT_INLINE void add_scaled(A* y, A a, const T* x, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] += a * static_cast<A>(x[i]);
}

// y += Σ a * x over the pairs (a, x) that term(0) to term(count - 1) give, in this order. Sums stay
// in registers.
template <class S, class T, class A, class Term>
SSEPT_INLINE void add_all_scaled(A* y, int64_t count, Term&& term, int64_t n) {
  constexpr int64_t kLanes = S::template kLanes<A>, kVectors = 4;
  if constexpr (std::is_same_v<T, A>) {
    if (n >= kLanes) {
      for (int64_t left = (n + kLanes - 1) / kLanes; left > 0; left -= kVectors) {
        // Counted from the end, so that only the first two vectors overlap; where fewer than
        // kVectors are left, the last is taken again. Each holds the whole sum of its elements.
        int64_t at[kVectors];
        typename S::template Vec<A> sum[kVectors];
        for (int64_t v = 0; v < kVectors; ++v) {
          at[v] = std::max<int64_t>(0, n - std::max<int64_t>(left - v, 1) * kLanes);
          sum[v] = S::load(y + at[v]);
        }
        for (int64_t i = 0; i < count; ++i) {
          const auto [a, x] = term(i);
          for (int64_t v = 0; v < kVectors; ++v) sum[v] += a * S::load(x + at[v]);
        }
        for (int64_t v = 0; v < kVectors; ++v) S::store(y + at[v], sum[v]);
      }
      return;
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    const auto [a, x] = term(i);
    add_scaled(y, a, x, n);
  }
}

}  // namespace ssept::cpu
