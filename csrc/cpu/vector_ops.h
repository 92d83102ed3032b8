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

// Philox of 16 counters at once, the loop inside a round over counters and not the reverse, so that
// it becomes SIMD.
template <int64_t LANES>
SSEPT_INLINE void philox4x32_10(uint32_t (&word)[4][LANES], uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
#pragma omp simd
    for (int64_t i = 0; i < LANES; ++i) {
      const uint64_t p0 = static_cast<uint64_t>(word[0][i]) * 0xD2511F53u;
      const uint64_t p1 = static_cast<uint64_t>(word[2][i]) * 0xCD9E8D57u;
      word[0][i] = static_cast<uint32_t>(p1 >> 32) ^ word[1][i] ^ key0;
      word[1][i] = static_cast<uint32_t>(p1);
      word[2][i] = static_cast<uint32_t>(p0 >> 32) ^ word[3][i] ^ key1;
      word[3][i] = static_cast<uint32_t>(p0);
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

// Sets to zero what dropout drops of a row's columns; does not scale the rest. `first_column` must
// be a multiple of 4. 4 * LANES columns are looked at together: more hide more of Philox's latency,
// but are wasted on short rows.
template <int64_t LANES = 32, class A>
SSEPT_INLINE void drop(A* x, int64_t n, const DropoutSite& dropout, int64_t seed, int64_t row,
                       int64_t first_column) {
  constexpr int64_t kColumns = 4 * LANES;
  for (int64_t c0 = 0; c0 < n; c0 += kColumns) {
    uint32_t word[4][LANES];
    for (int64_t i = 0; i < LANES; ++i) {
      word[0][i] = static_cast<uint32_t>((first_column + c0) / 4 + i);
      word[1][i] = static_cast<uint32_t>(row);
      word[2][i] = static_cast<uint32_t>(static_cast<uint64_t>(row) >> 32);
      word[3][i] = dropout.site;
    }
    philox4x32_10(word, static_cast<uint32_t>(seed),
                  static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32));
    uint32_t by_column[kColumns];
    for (int64_t i = 0; i < LANES; ++i)
      for (int64_t w = 0; w < 4; ++w) by_column[4 * i + w] = word[w][i];
    const int64_t count = n - c0 < kColumns ? n - c0 : kColumns;
#pragma omp simd
    for (int64_t c = 0; c < count; ++c)
      x[c0 + c] = by_column[c] < dropout.threshold ? A(0) : x[c0 + c];
  }
}

}  // namespace ssept::cpu
