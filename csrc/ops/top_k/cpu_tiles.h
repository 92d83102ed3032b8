// Scores of some items for some queries. Each is the sum over the elements of fma(query, item, sum)
// in their order, whatever else is scored with it and however wide the registers are, so that it
// has the same bits in every call.
#pragma once
#include <cmath>
#include <numeric>
#include <vector>

#include "cpu/tiles.h"
#include "ops/top_k/params.h"

namespace ssept::cpu {

// Items that are scored at once: as much as stays in the cache nearest to a core, a multiple of
// kPackedItems, and of 12 vectors of any width.
constexpr int64_t kTileItems = 192;

// sum + a · x, rounded once: compilers make one instruction of it where the registers have it.
template <class S, class A>
SSEPT_INLINE typename S::template Vec<A> fused(A a, typename S::template Vec<A> x,
                                               typename S::template Vec<A> sum) {
#if defined(__x86_64__) && !defined(__FMA__)
  if constexpr (sizeof(x) == 16) {
    for (int64_t i = 0; i < S::template kLanes<A>; ++i) sum[i] = std::fma(a, x[i], sum[i]);
    return sum;
  }
#endif
  return sum + a * x;
}

// The scores of ROWS queries for a tile: VECTORS at a time are summed in registers.
template <class S, int ROWS, int VECTORS, class A>
SSEPT_INLINE void score_rows(int64_t width, const A* queries, const A* panel, A* scores) {
  using Vec = typename S::template Vec<A>;
  constexpr int64_t kLanes = S::template kLanes<A>;
  for (int64_t i = 0; i < kTileItems; i += VECTORS * kLanes) {
    Vec sum[ROWS][VECTORS]{};
    for (int64_t d = 0; d < width; ++d) {
      Vec x[VECTORS];
#pragma GCC unroll 12
      for (int v = 0; v < VECTORS; ++v) x[v] = S::at(panel + d * kTileItems + i + v * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r) {
        const A query = queries[r * width + d];
#pragma GCC unroll 12
        for (int v = 0; v < VECTORS; ++v) sum[r][v] = fused<S>(query, x[v], sum[r][v]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 12
      for (int v = 0; v < VECTORS; ++v) S::at(scores + r * kTileItems + i + v * kLanes) = sum[r][v];
  }
}

// The rows of some items, element by element.
template <class T>
class Tile {
 public:
  using A = Accumulator<T>;

  explicit Tile(const ItemTable<T>& table)
      : table_(table),
        rows_(kTileItems * table.width),
        panel_((table.width + kMaxLanes<A>)*kTileItems),
        scale_(kTileItems) {
    std::fill_n(panel_.get(), (table.width + kMaxLanes<A>)*kTileItems, A(0));
    std::fill_n(scale_.get(), kTileItems, A(1));
  }

  // Takes kTileItems rows at most, one after another.
  template <class S>
  SSEPT_INLINE void take(int64_t first, int64_t count) {
    if (table_.packed) {
      for (int64_t i = 0, n; i < count; i += n) {
        n = std::min(count - i, kPackedItems - (first + i) % kPackedItems);
        take_packed(table_.row(first + i), n, panel_ + i);
      }
    } else {
      const T* rows = table_.row(first);
      if constexpr (std::is_same_v<T, A>) {
        transpose<S>(rows, count);
      } else {
#pragma omp simd
        for (int64_t i = 0; i < count * table_.width; ++i) rows_.get()[i] = static_cast<A>(rows[i]);
        transpose<S>(rows_.get(), count);
      }
    }
    if (table_.scale) std::copy_n(table_.scale + first, count, scale_.get());
  }

  // Takes these rows, kTileItems at most.
  template <class S>
  SSEPT_INLINE void take(const int64_t* ids, int64_t count) {
    for (int64_t j = 0; j < count; ++j) {
      const T* row = table_.row(ids[j]);
      A* to = rows_ + j * table_.width;
      for (int64_t i = 0; i < table_.width; ++i) to[i] = static_cast<A>(row[i * table_.stride()]);
      if (table_.scale) scale_.get()[j] = table_.scale[ids[j]];
    }
    transpose<S>(rows_.get(), count);
  }

  // The scores (count, kTileItems) for queries (count, W); those beyond the items that were taken
  // mean nothing.
  template <class S>
  SSEPT_INLINE void score(const A* queries, int64_t count, A* scores) const {
    int64_t r = 0;
    for (; r + S::kRows <= count; r += S::kRows)
      score_rows<S, S::kRows, 3>(table_.width, queries + r * table_.width, panel_.get(),
                                 scores + r * kTileItems);
    for (; r < count; ++r)
      score_rows<S, 1, 12>(table_.width, queries + r * table_.width, panel_.get(),
                           scores + r * kTileItems);
    for (r = 0; table_.scale && r < count; ++r)
      for (int64_t i = 0; i < kTileItems; i += S::template kLanes<A>)
        S::at(scores + r * kTileItems + i) *= S::at(scale_ + i);
  }

 private:
  template <class S>
  SSEPT_INLINE void transpose(const A* rows, int64_t count) {
    pack_transposed<S>(rows, table_.width, count, table_.width, kTileItems, panel_.get());
  }

  SSEPT_INLINE void take_packed(const T* from, int64_t count, A* to) {
    for (int64_t d = 0; d < table_.width; ++d)
#pragma omp simd
      for (int64_t i = 0; i < count; ++i)
        to[d * kTileItems + i] = static_cast<A>(from[d * kPackedItems + i]);
  }

  ItemTable<T> table_;
  Buffer<A> rows_, panel_, scale_;
};

}  // namespace ssept::cpu
