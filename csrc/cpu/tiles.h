// Dense products on small tiles, written with vectors of 64 bytes: one AVX-512 register, two of
// AVX2.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

#include "cpu/parallel.h"

namespace ssept::cpu {

template <class A>
inline constexpr int64_t kLanes = 64 / sizeof(A);

template <class A>
struct VecOf {
  typedef A type __attribute__((vector_size(64), aligned(sizeof(A)), may_alias));
};
template <class A>
using Vec = typename VecOf<A>::type;

template <class A>
SSEPT_INLINE Vec<A>& vec(A* x) {
  return *reinterpret_cast<Vec<A>*>(x);
}
template <class A>
SSEPT_INLINE const Vec<A>& vec(const A* x) {
  return *reinterpret_cast<const Vec<A>*>(x);
}

template <class A>
SSEPT_INLINE int64_t padded(int64_t n) {
  return (n + kLanes<A> - 1) / kLanes<A> * kLanes<A>;
}

// Uninitialised memory for tiles, aligned to a cache line.
template <class A>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : memory_(static_cast<A*>(::operator new(count * sizeof(A), std::align_val_t(64)))) {}
  A* get() const { return memory_.get(); }
  A* operator+(int64_t i) const { return memory_.get() + i; }

 private:
  struct Delete {
    void operator()(A* x) const { ::operator delete(x, std::align_val_t(64)); }
  };
  std::unique_ptr<A, Delete> memory_;
};

constexpr int64_t kRowsAtOnce = 4;

// kRowsAtOnce rows and VECS vectors of C += A · B, all of them in registers.
template <int VECS, class A>
SSEPT_INLINE void multiply_block(int64_t depth, const A* a, int64_t a_row, int64_t a_column,
                                 const A* b, int64_t b_row, A* c, int64_t c_row) {
  Vec<A> sum[kRowsAtOnce][VECS];
#pragma GCC unroll 4
  for (int r = 0; r < kRowsAtOnce; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECS; ++v) sum[r][v] = vec(c + r * c_row + v * kLanes<A>);
  for (int64_t d = 0; d < depth; ++d) {
    Vec<A> row[VECS];
#pragma GCC unroll 4
    for (int v = 0; v < VECS; ++v) row[v] = vec(b + d * b_row + v * kLanes<A>);
#pragma GCC unroll 4
    for (int r = 0; r < kRowsAtOnce; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < VECS; ++v) sum[r][v] += a[r * a_row + d * a_column] * row[v];
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRowsAtOnce; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECS; ++v) vec(c + r * c_row + v * kLanes<A>) = sum[r][v];
}

// C (rows, columns) += A (rows, depth) · B (depth, columns). `columns` must be a multiple of
// kLanes; rows are rounded up to kRowsAtOnce, which A and C must have room for. Transposed A is a
// matter of its strides.
template <class A>
SSEPT_INLINE void multiply_add(int64_t rows, int64_t columns, int64_t depth, const A* a,
                               int64_t a_row, int64_t a_column, const A* b, int64_t b_row, A* c,
                               int64_t c_row) {
  for (int64_t r = 0; r < rows; r += kRowsAtOnce) {
    int64_t i = 0;
    for (; i + 2 * kLanes<A> <= columns; i += 2 * kLanes<A>)
      multiply_block<2>(depth, a + r * a_row, a_row, a_column, b + i, b_row, c + r * c_row + i,
                        c_row);
    if (i < columns)
      multiply_block<1>(depth, a + r * a_row, a_row, a_column, b + i, b_row, c + r * c_row + i,
                        c_row);
  }
}

// Rows of x as (tile_rows, padded width), zeros where there is nothing.
template <class T, class A>
SSEPT_INLINE void pack_rows(const T* x, int64_t x_row, int64_t rows, int64_t width, A scale,
                            int64_t tile_rows, A* tile) {
  const int64_t tile_width = padded<A>(width);
  for (int64_t r = 0; r < tile_rows; ++r) {
    A* out = tile + r * tile_width;
    const int64_t filled = r < rows ? width : 0;
    for (int64_t i = 0; i < filled; ++i) out[i] = scale * static_cast<A>(x[r * x_row + i]);
    for (int64_t i = filled; i < tile_width; ++i) out[i] = 0;
  }
}

// A packed tile, transposed to (width, tile_rows).
template <class A>
SSEPT_INLINE void transpose(const A* tile, int64_t width, int64_t tile_rows, A* transposed) {
  const int64_t tile_width = padded<A>(width);
  for (int64_t i = 0; i < width; ++i)
    for (int64_t r = 0; r < tile_rows; ++r)
      transposed[i * tile_rows + r] = tile[r * tile_width + i];
}

// e^x within 2 units of the last place, and 0 below the smallest normal number.
template <class A>
SSEPT_INLINE Vec<A> exponential(Vec<A> x) {
  if constexpr (sizeof(A) == 4) {
    // Cephes' expf: x = n ln 2 + r, a polynomial in r, and n added to the exponent. Adding 1.5 *
    // 2^23 rounds to an integer, which then stands in the low bits.
    const Vec<A> shifted = x * 1.44269504088896341f + 12582912.0f;
    const Vec<A> n = shifted - 12582912.0f;
    const Vec<A> r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vec<A> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    typedef int32_t Bits __attribute__((vector_size(64)));
    const Bits bits = reinterpret_cast<Bits>(p) + (reinterpret_cast<Bits>(shifted) << 23);
    return x < -87.0f ? Vec<A>{} : reinterpret_cast<Vec<A>>(bits);
  } else {
    Vec<A> y;
    for (int64_t i = 0; i < kLanes<A>; ++i) y[i] = std::exp(x[i]);
    return y;
  }
}

template <class A>
SSEPT_INLINE A horizontal_sum(Vec<A> x) {
  A sum = 0;
  for (int64_t i = 0; i < kLanes<A>; ++i) sum += x[i];
  return sum;
}

template <class A>
SSEPT_INLINE A horizontal_max(Vec<A> x) {
  A largest = x[0];
  for (int64_t i = 1; i < kLanes<A>; ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

}  // namespace ssept::cpu
