// Dense products on small tiles, on vectors as wide as the machine's registers.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "cpu/halves.h"

namespace ssept::cpu {

// Elements that rows of tiles are rounded up to, at most.
template <class A>
constexpr int64_t kMaxLanes = 64 / sizeof(A);

// Calls f(i, keep) for vectors that cover n elements, at least one vector's: the last overlaps the
// one before, and keep(v) clears the lanes of a v that an earlier vector had.
template <class S, class A, class F>
SSEPT_INLINE void for_vectors(int64_t n, F&& f) {
  using Vec = typename S::template Vec<A>;
  constexpr int64_t kLanes = S::template kLanes<A>;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) f(i, [](Vec v) SSEPT_INLINE_LAMBDA { return v; });
  if (i == n) return;
  Vec lane;
  for (int64_t l = 0; l < kLanes; ++l) lane[l] = static_cast<A>(l);
  const auto first = static_cast<A>(kLanes - (n - i));
  f(n - kLanes, [&](Vec v) SSEPT_INLINE_LAMBDA { return lane < first ? Vec{} : v; });
}

// One element as a vector, for rows that have fewer than those of S: n elements of A, which may be
// none, fit in whole vectors that overlap, or they do not.
template <class A>
using Single = Simd<sizeof(A), 1>;
template <class S, class A>
SSEPT_INLINE bool fits(int64_t n) {
  return S::template kLanes<A> == 1 || n >= S::template kLanes<A>;
}

// out = what f(L, i) returns for vectors of L that cover n elements; where there are too few, for
// each element as a vector. The last may overlap the one before, and is computed first, so that f
// may read what is written.
template <class S, class T, class A = Accumulator<T>, class F>
SSEPT_INLINE void write_lanes(int64_t n, T* out, F&& f) {
  if (!fits<S, A>(n)) return write_lanes<Single<A>>(n, out, f);
  if (n == 0) return;
  constexpr int64_t kLanes = S::template kLanes<A>;
  const int64_t last = n - kLanes;
  const auto of_last = f(S(), last);
  for (int64_t i = 0; i < last; i += kLanes) store_rounded<S>(out + i, f(S(), i));
  store_rounded<S>(out + last, of_last);
}

// sums += what f(L, i) returns for such vectors. The sums of the last are read before some of them
// are written as part of the one before: else these would be added twice, and a load waits for a
// store of which it needs a part.
template <class S, class A, class F>
SSEPT_INLINE void add_lanes(int64_t n, A* sums, F&& f) {
  if (!fits<S, A>(n)) return add_lanes<Single<A>>(n, sums, f);
  if (n == 0) return;
  constexpr int64_t kLanes = S::template kLanes<A>;
  const int64_t last = n - kLanes;
  const auto of_last = S::load(sums + last);
  for (int64_t i = 0; i < last; i += kLanes) S::store(sums + i, S::load(sums + i) + f(S(), i));
  S::store(sums + last, of_last + f(S(), last));
}

// out = scale · row, and `more` unless it is null.
template <class S, class T, class A>
SSEPT_INLINE void round_row(const A* row, A scale, const T* more, int64_t width, T* out) {
  write_lanes<S>(width, out, [&]<class L>(L, int64_t i) SSEPT_INLINE_LAMBDA {
    const auto x = L::load(row + i) * scale;
    return more ? x + load_wide<L>(more + i) : x;
  });
}

// Uninitialised memory for tiles, aligned to a cache line.
template <class A>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : memory_(static_cast<A*>(::operator new(count * sizeof(A), std::align_val_t(64)))) {}
  A* get() const { return memory_.get(); }
  A* operator+(int64_t i) const { return memory_.get() + i; }
  template <class E>
  E* as() const {
    static_assert(sizeof(E) == sizeof(A));
    return reinterpret_cast<E*>(memory_.get());
  }

 private:
  struct Delete {
    void operator()(A* x) const { ::operator delete(x, std::align_val_t(64)); }
  };
  std::unique_ptr<A, Delete> memory_;
};

// ROWS rows of C = A · B, or of C += A · B: VECS vectors and a narrower one of TAIL bytes, all of
// them in registers. A and B are of elements E, of which `depth` are added up.
template <class S, int ROWS, int VECS, int TAIL, class E, class A>
SSEPT_INLINE void multiply_block(bool add, int64_t depth, const E* a, int64_t a_row,
                                 int64_t a_column, const E* b, int64_t b_row, A* c, int64_t c_row) {
  using Narrow = Simd<TAIL ? TAIL : 16, 1>;
  constexpr int64_t kLanes = S::template kLanes<A>, kTail = VECS * kLanes;
  typename S::template Vec<A> sum[ROWS][VECS + 1];
  typename Narrow::template Vec<A> tail[ROWS];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < VECS; ++v)
      sum[r][v] = add ? S::load(c + r * c_row + v * kLanes) : typename S::template Vec<A>{};
    if constexpr (TAIL > 0)
      tail[r] = add ? Narrow::load(c + r * c_row + kTail) : typename Narrow::template Vec<A>{};
  }
  for (int64_t d = 0; d < depth; ++d, a += a_column, b += b_row) {
    typename S::template Vec<E> row[VECS + 1];
    typename Narrow::template Vec<E> row_tail{};
#pragma GCC unroll 3
    for (int v = 0; v < VECS; ++v) row[v] = S::load(b + v * kLanes);
    if constexpr (TAIL > 0) row_tail = Narrow::load(b + kTail);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const E factor = element(a + r * a_row);
#pragma GCC unroll 3
      for (int v = 0; v < VECS; ++v) sum[r][v] = add_product<S, A>(sum[r][v], factor, row[v]);
      if constexpr (TAIL > 0) tail[r] = add_product<Narrow, A>(tail[r], factor, row_tail);
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
template <class S, bool ADD, class E, class A>
SSEPT_INLINE void multiply_rows(int64_t columns, int64_t depth, const E* a, int64_t a_row,
                                int64_t a_column, const E* b, int64_t b_row, A* c, int64_t c_row) {
  constexpr int64_t kLanes = S::template kLanes<A>;
  int64_t i = 0;
  for (; i + kLanes < columns; i += 2 * kLanes)
    multiply_block<S, S::kRows, 2, 0>(ADD, depth, a, a_row, a_column, b + i, b_row, c + i, c_row);
  if (i < columns)
    multiply_block<S, S::kRows, 1, 0>(ADD, depth, a, a_row, a_column, b + i, b_row, c + i, c_row);
}

// kRows rows of C += A · B, in which a zero of A hides a row of B: unless all of B is finite, that
// has to be looked at, as 0 · NaN is NaN.
template <class S, class E, class A>
SSEPT_INLINE void add_products(bool finite, int64_t columns, int64_t depth, const E* a,
                               int64_t a_row, int64_t a_column, const E* b, int64_t b_row, A* c,
                               int64_t c_row) {
  if (finite) return multiply_rows<S, true>(columns, depth, a, a_row, a_column, b, b_row, c, c_row);
  for (int64_t r = 0; r < S::kRows; ++r)
    for (int64_t d = 0; d < depth; ++d)
      for (int64_t i = 0; i < columns; ++i)
        add_unhidden(c[r * c_row + i], element(a + r * a_row + d * a_column),
                     element(b + d * b_row + i));
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
    Vec y{};
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
  if constexpr (HALF == 0)
    return x[0];
  else
    return fold<S, A, HALF / 2>(combine(x, lanes_from<S, A, HALF>(x, kIndices)), combine);
}

template <class S, class A>
SSEPT_INLINE A horizontal_sum(typename S::template Vec<A> x) {
  return fold<S, A>(x, [](auto a, auto b) SSEPT_INLINE_LAMBDA { return a + b; });
}

template <class S, class A>
SSEPT_INLINE A horizontal_max(typename S::template Vec<A> x) {
  return fold<S, A>(x, [](auto a, auto b) SSEPT_INLINE_LAMBDA { return a > b ? a : b; });
}

// Rows of x, plus `bias` if there is one, in pairs of neighbours in a row, (tile_rows, width in
// whole vectors of pairs), and in a column, (tile_rows / 2, width in whole vectors), zeros where
// there is nothing. Returns whether all pairs of columns, if wanted, are finite.
template <class S, bool ACROSS, bool DOWN>
SSEPT_INLINE bool pack_pairs(const BFloat16* x, int64_t x_row, int64_t rows, int64_t width,
                             int64_t tile_rows, Pair* across, Pair* down,
                             const float* bias = nullptr) {
  constexpr int64_t kLanes = S::template kLanes<float>;
  const int64_t across_row = S::template whole_vectors<Pair>(elements_of<Pair>(width));
  const int64_t down_row = S::template whole_vectors<Pair>(width);
  typename S::template Vec<float> zero{};
  for (int64_t i = 0; i < width; i += 2 * kLanes) {
    int64_t count[2];
    typename S::template Vec<float> added[2]{};
#pragma GCC unroll 2
    for (int64_t v = 0; v < 2; ++v) {
      count[v] = std::clamp<int64_t>(width - i - v * kLanes, 0, kLanes);
      for (int64_t j = 0; bias && j < count[v]; ++j) added[v][j] = bias[i + v * kLanes + j];
    }
    for (int64_t r = 0; r < tile_rows; r += 2) {
      HalfVec<S> half[2][2]{};
#pragma GCC unroll 2
      for (int64_t n = 0; n < 2; ++n) {
        if (r + n < rows)
#pragma GCC unroll 2
          for (int64_t v = 0; v < 2; ++v) {
            half[n][v] = load_first<S>(x + (r + n) * x_row + i + v * kLanes, count[v]);
            if (bias) half[n][v] = rounded<S>(widened_bfloat16<S>(half[n][v]) + added[v]);
          }
        if constexpr (ACROSS)
          S::store(across + (r + n) * across_row + i / 2, pairs_across<S>(half[n][0], half[n][1]));
      }
      if constexpr (DOWN)
#pragma GCC unroll 2
        for (int64_t v = 0; v < 2; ++v)
          if (count[v] > 0) {
            const auto pairs = pairs_down<S>(half[0][v], half[1][v]);
            zero = add_product<S, float>(zero, Pair(0), pairs);
            S::store(down + r / 2 * down_row + i + v * kLanes, pairs);
          }
    }
  }
  return horizontal_sum<S, float>(zero) == 0;
}

}  // namespace ssept::cpu
