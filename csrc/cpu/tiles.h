// Dense products on small tiles, on vectors as wide as the machine's registers.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace ssept::cpu {

// What a kernel is compiled for: vectors of BYTES bytes, and how many rows of a product are kept in
// registers at once, with two vectors each.
template <int BYTES, int ROWS>
struct Simd {
  static constexpr int64_t kRows = ROWS;

  template <class A>
  static constexpr int64_t kLanes = BYTES / sizeof(A);

  template <class A>
  struct VecOf {
    typedef A type __attribute__((vector_size(BYTES), aligned(sizeof(A)), may_alias));
  };
  template <class A>
  using Vec = typename VecOf<A>::type;

  // By value: Clang takes what a function returns a reference to for aligned as a whole vector.
  template <class A>
  SSEPT_INLINE static Vec<A> load(const A* x) {
    return *reinterpret_cast<const Vec<A>*>(x);
  }
  template <class A>
  SSEPT_INLINE static void store(A* x, Vec<A> vector) {
    *reinterpret_cast<Vec<A>*>(x) = vector;
  }

  SSEPT_INLINE static int64_t whole_rows(int64_t n) { return (n + ROWS - 1) / ROWS * ROWS; }
  template <class A>
  SSEPT_INLINE static int64_t whole_vectors(int64_t n) {
    return (n + kLanes<A> - 1) / kLanes<A> * kLanes<A>;
  }
};

// Runs f(Simd) compiled for the registers of `simd_level`. Unlike SSEPT_SIMD_CLONES, f knows how
// wide they are: vectors wider than that would be computed in memory, dozens of times slower. f and
// all it calls must be SSEPT_INLINE.
#if defined(__x86_64__) && defined(__GNUC__)
template <class F>
[[gnu::target("arch=x86-64-v4")]] void run_with_avx512(F& f) {
  f(Simd<64, 8>());
}
template <class F>
[[gnu::target("arch=x86-64-v3")]] void run_with_avx2(F& f) {
  f(Simd<32, 4>());
}
template <class F>
void with_simd(F&& f) {
  switch (simd_level()) {
    case SimdLevel::kAvx512:
      return run_with_avx512(f);
    case SimdLevel::kAvx2:
      return run_with_avx2(f);
    case SimdLevel::kBaseline:
      return f(Simd<16, 4>());
  }
}
#else
template <class F>
void with_simd(F&& f) {
  f(Simd<16, 4>());
}
#endif

// Elements that rows of tiles are rounded up to, at most.
template <class A>
constexpr int64_t kMaxLanes = 64 / sizeof(A);

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

// ROWS rows of C = A · B, or of C += A · B: VECS vectors and a narrower one of TAIL bytes, all of
// them in registers.
template <class S, int ROWS, int VECS, int TAIL, class A>
SSEPT_INLINE void multiply_block(bool add, int64_t depth, const A* a, int64_t a_row,
                                 int64_t a_column, const A* b, int64_t b_row, A* c, int64_t c_row) {
  using Vec = typename S::template Vec<A>;
  using Narrow = Simd<TAIL ? TAIL : 16, 1>;
  using Tail = typename Narrow::template Vec<A>;
  constexpr int64_t kLanes = S::template kLanes<A>, kTail = VECS * kLanes;
  Vec sum[ROWS][VECS + 1];
  Tail tail[ROWS];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < VECS; ++v) sum[r][v] = add ? S::load(c + r * c_row + v * kLanes) : Vec{};
    if constexpr (TAIL > 0) tail[r] = add ? Narrow::load(c + r * c_row + kTail) : Tail{};
  }
  for (int64_t d = 0; d < depth; ++d, a += a_column, b += b_row) {
    Vec row[VECS + 1];
    Tail row_tail{};
#pragma GCC unroll 3
    for (int v = 0; v < VECS; ++v) row[v] = S::load(b + v * kLanes);
    if constexpr (TAIL > 0) row_tail = Narrow::load(b + kTail);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const A factor = a[r * a_row];
#pragma GCC unroll 3
      for (int v = 0; v < VECS; ++v) sum[r][v] += factor * row[v];
      if constexpr (TAIL > 0) tail[r] += factor * row_tail;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < VECS; ++v) S::store(c + r * c_row + v * kLanes, sum[r][v]);
    if constexpr (TAIL > 0) Narrow::store(c + r * c_row + kTail, tail[r]);
  }
}

// kRows rows of C = A · B, or of C += A · B: (kRows, columns) of (kRows, depth) and (depth,
// columns). `columns` are rounded up to vectors, which B and C must have room for. Transposed A is
// a matter of its strides.
template <class S, bool ADD, class A>
SSEPT_INLINE void multiply_rows(int64_t columns, int64_t depth, const A* a, int64_t a_row,
                                int64_t a_column, const A* b, int64_t b_row, A* c, int64_t c_row) {
  constexpr int64_t kLanes = S::template kLanes<A>;
  int64_t i = 0;
  for (; i + kLanes < columns; i += 2 * kLanes)
    multiply_block<S, S::kRows, 2, 0>(ADD, depth, a, a_row, a_column, b + i, b_row, c + i, c_row);
  if (i < columns)
    multiply_block<S, S::kRows, 1, 0>(ADD, depth, a, a_row, a_column, b + i, b_row, c + i, c_row);
}

// kRows rows of C += A · B, in which a zero of A hides a row of B: unless all of B is finite, that
// has to be looked at, as 0 · NaN is NaN.
template <class S, class A>
SSEPT_INLINE void add_product(bool finite, int64_t columns, int64_t depth, const A* a,
                              int64_t a_row, int64_t a_column, const A* b, int64_t b_row, A* c,
                              int64_t c_row) {
  if (finite) return multiply_rows<S, true>(columns, depth, a, a_row, a_column, b, b_row, c, c_row);
  for (int64_t r = 0; r < S::kRows; ++r)
    for (int64_t d = 0; d < depth; ++d)
      if (const A factor = a[r * a_row + d * a_column]; factor != 0)
        for (int64_t i = 0; i < columns; ++i) c[r * c_row + i] += factor * b[d * b_row + i];
}

// Rows of x, plus `bias` if there is one, as (tile_rows, width in whole vectors), zeros where there
// is nothing. Returns whether all are finite.
template <class S, class T, class A>
SSEPT_INLINE bool pack_rows(const T* x, int64_t x_row, int64_t rows, int64_t width, A scale,
                            int64_t tile_rows, A* tile, const A* bias = nullptr) {
  const int64_t tile_width = S::template whole_vectors<A>(width);
  A zero = 0;
  for (int64_t r = 0; r < tile_rows; ++r) {
    A* out = tile + r * tile_width;
    const int64_t filled = r < rows ? width : 0;
#pragma omp simd reduction(+ : zero)
    for (int64_t i = 0; i < filled; ++i) {
      out[i] = scale * (static_cast<A>(x[r * x_row + i]) + (bias ? bias[i] : A(0)));
      zero += 0 * out[i];
    }
    for (int64_t i = filled; i < tile_width; ++i) out[i] = 0;
  }
  return zero == 0;
}

// The lanes INDEX of x and, counted on from there, of y.
template <class S, class A, size_t... INDEX>
SSEPT_INLINE typename S::template Vec<A> shuffle(typename S::template Vec<A> x,
                                                 typename S::template Vec<A> y) {
#ifdef __clang__
  return __builtin_shufflevector(x, y, INDEX...);
#else
  using Index = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;
  typedef Index Indices __attribute__((vector_size(sizeof(x))));
  return __builtin_shuffle(x, y, Indices{static_cast<Index>(INDEX)...});
#endif
}

// Every other COUNT lanes of x and of y, in turn: the even ones, or the odd ones.
template <class S, class A, size_t COUNT, bool ODD, size_t... I>
SSEPT_INLINE typename S::template Vec<A> every_other(typename S::template Vec<A> x,
                                                     typename S::template Vec<A> y,
                                                     std::index_sequence<I...>) {
  constexpr size_t kLanes = sizeof...(I);
  return shuffle<S, A,
                 ((I & COUNT) == 0 ? I + (ODD ? COUNT : 0) : kLanes + I - (ODD ? 0 : COUNT))...>(x,
                                                                                                 y);
}

// Transposes a square of as many vectors as they have lanes, by blocks of COUNT and more.
template <class S, class A, size_t COUNT = 1>
SSEPT_INLINE void transpose(typename S::template Vec<A>* square) {
  constexpr auto kLanes = static_cast<size_t>(S::template kLanes<A>);
  if constexpr (COUNT < kLanes) {
    constexpr auto kIndices = std::make_index_sequence<kLanes>();
#pragma GCC unroll 16
    for (size_t r = 0; r < kLanes; ++r) {
      if (r & COUNT) continue;
      const auto x = square[r], y = square[r + COUNT];
      square[r] = every_other<S, A, COUNT, false>(x, y, kIndices);
      square[r + COUNT] = every_other<S, A, COUNT, true>(x, y, kIndices);
    }
    transpose<S, A, 2 * COUNT>(square);
  }
}

// Rows of x, plus `bias` if there is one, as (width in whole vectors, tile_columns): column r of
// the tile is row r of x, zeros where there is none, up to `rows` in whole vectors.
template <class S, class T, class A>
SSEPT_INLINE void pack_transposed(const T* x, int64_t x_row, int64_t rows, int64_t width,
                                  int64_t tile_columns, A* tile, const A* bias = nullptr) {
  constexpr int64_t kLanes = S::template kLanes<A>;
  using Vec = typename S::template Vec<A>;
  for (int64_t r0 = 0; r0 < rows; r0 += kLanes)
    for (int64_t i0 = 0; i0 < width; i0 += kLanes) {
      // The last columns with some before them, so that they are whole vectors.
      const bool overlaps = std::is_same_v<T, A> && width >= kLanes && i0 + kLanes > width;
      const int64_t first = overlaps ? width - kLanes : i0;
      Vec block[kLanes], added{};
      for (int64_t i = first; bias && i < std::min(width, first + kLanes); ++i)
        added[i - first] = bias[i];
      const bool is_direct = std::is_same_v<T, A> && first + kLanes <= width;
      const T* const from = x + r0 * x_row + first;
      if (is_direct && r0 + kLanes <= rows) {  // a whole block: no check of each row
        if constexpr (std::is_same_v<T, A>) {
#pragma GCC unroll 16
          for (int64_t r = 0; r < kLanes; ++r) block[r] = S::load(from + r * x_row) + added;
        }
      } else {
#pragma GCC unroll 16
        for (int64_t r = 0; r < kLanes; ++r) {
          if (r0 + r >= rows) {
            block[r] = Vec{};
            continue;
          }
          if constexpr (std::is_same_v<T, A>) {
            if (is_direct) {  // not by memcpy, which may go through memory
              block[r] = S::load(from + r * x_row) + added;
              continue;
            }
          }
          A row[kLanes];
          for (int64_t i = 0; i < kLanes; ++i)
            row[i] = first + i < width ? static_cast<A>(from[r * x_row + i]) : A(0);
          block[r] = S::load(row) + added;
        }
      }
      transpose<S, A>(block);
      for (int64_t i = 0; i < kLanes; ++i)
        S::store(tile + (first + i) * tile_columns + r0, block[i]);
      for (int64_t i = width; overlaps && i < i0 + kLanes; ++i)
        S::store(tile + i * tile_columns + r0, Vec{});
    }
}

// e^x within 2 units of the last place, and 0 below the smallest normal number.
template <class S, class A>
SSEPT_INLINE typename S::template Vec<A> exponential(typename S::template Vec<A> x) {
  using Vec = typename S::template Vec<A>;
  if constexpr (sizeof(A) == 4) {
    // Cephes' expf: x = n ln 2 + r, a polynomial in r, and n added to the exponent. Adding 1.5 *
    // 2^23 rounds to an integer, which then stands in the low bits.
    const Vec shifted = x * 1.44269504088896341f + 12582912.0f;
    const Vec n = shifted - 12582912.0f;
    const Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    typedef uint32_t Bits __attribute__((vector_size(sizeof(Vec))));
    const Bits bits = reinterpret_cast<Bits>(p) + (reinterpret_cast<Bits>(shifted) << 23);
    return x < -87.0f ? Vec{} : reinterpret_cast<Vec>(bits);
  } else {
    Vec y;
    for (int64_t i = 0; i < S::template kLanes<A>; ++i) y[i] = std::exp(x[i]);
    return y;
  }
}

// Lanes COUNT and up of x moved to the bottom.
template <class S, class A, size_t COUNT, size_t... I>
SSEPT_INLINE typename S::template Vec<A> lanes_from(typename S::template Vec<A> x,
                                                    std::index_sequence<I...>) {
  return shuffle<S, A, (COUNT + I) % sizeof...(I)...>(x, x);
}

// x[0] ∘ x[1] ∘ ..., by halves.
template <class S, class A, size_t HALF = static_cast<size_t>(S::template kLanes<A>) / 2, class F>
SSEPT_INLINE A fold(typename S::template Vec<A> x, F combine) {
  constexpr auto kIndices = std::make_index_sequence<static_cast<size_t>(S::template kLanes<A>)>();
  x = combine(x, lanes_from<S, A, HALF>(x, kIndices));
  if constexpr (HALF > 1)
    return fold<S, A, HALF / 2>(x, combine);
  else
    return x[0];
}

template <class S, class A>
SSEPT_INLINE A horizontal_sum(typename S::template Vec<A> x) {
  return fold<S, A>(x, [](auto a, auto b) SSEPT_INLINE_LAMBDA { return a + b; });
}

template <class S, class A>
SSEPT_INLINE A horizontal_max(typename S::template Vec<A> x) {
  return fold<S, A>(x, [](auto a, auto b) SSEPT_INLINE_LAMBDA { return a > b ? a : b; });
}

}  // namespace ssept::cpu
