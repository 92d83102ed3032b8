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

// Items that are scored at once for many queries, a multiple of 3 vectors of any width; and for
// few, so that they stay in the cache nearest to a core. Packed tables are divided there, too.
constexpr int64_t kTileItems = 3 * kPackedItems, kSmallTileItems = kPackedItems;

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

// Elements in the type of sums.
template <class S, class T, class A>
SSEPT_INLINE void widen(const T* from, int64_t count, A* to) {
  int64_t i = 0;
  if constexpr (std::is_same_v<T, torch::headeronly::Half>)
    for (; i + S::template kLanes<A> <= count; i += S::template kLanes<A>)
      S::store(to + i, load_wide<S>(from + i));
#pragma omp simd
  for (int64_t j = i; j < count; ++j) to[j] = static_cast<A>(from[j]);
}

// The scores of ROWS queries for a tile: VECTORS at a time are summed in registers.
template <class S, int64_t ITEMS, int ROWS, int VECTORS, class A>
SSEPT_INLINE void score_rows(int64_t width, const A* queries, const A* panel, A* scores) {
  using Vec = typename S::template Vec<A>;
  constexpr int64_t kLanes = S::template kLanes<A>;
  for (int64_t i = 0; i < ITEMS; i += VECTORS * kLanes) {
    Vec sum[ROWS][VECTORS]{};
    for (int64_t d = 0; d < width; ++d) {
      Vec x[VECTORS];
#pragma GCC unroll 12
      for (int v = 0; v < VECTORS; ++v) x[v] = S::load(panel + d * ITEMS + i + v * kLanes);
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
      for (int v = 0; v < VECTORS; ++v) S::store(scores + r * ITEMS + i + v * kLanes, sum[r][v]);
  }
}

// The rows of some items, element by element.
template <class T, int64_t ITEMS = kTileItems>
class Tile {
 public:
  using A = Accumulator<T>;

  explicit Tile(const ItemTable<T>& table)
      : table_(table),
        rows_(ITEMS * table.width),
        panel_((table.width + kMaxLanes<A>)*ITEMS),
        scale_(ITEMS) {
    std::fill_n(panel_.get(), (table.width + kMaxLanes<A>)*ITEMS, A(0));
    std::fill_n(scale_.get(), ITEMS, A(1));
  }

  // Takes ITEMS rows at most, one after another.
  template <class S>
  SSEPT_INLINE void take(int64_t first, int64_t count) {
    if (table_.packed) {
      for (int64_t i = 0, n; i < count; i += n) {
        n = std::min(count - i, kPackedItems - (first + i) % kPackedItems);
        take_packed<S>(table_.row(first + i), n, panel_ + i);
      }
    } else {
      const T* rows = table_.row(first);
      if constexpr (std::is_same_v<T, A>) {
        transpose<S>(rows, count);
      } else {
        widen<S>(rows, count * table_.width, rows_.get());
        transpose<S>(rows_.get(), count);
      }
    }
    if (table_.scale) std::copy_n(table_.scale + first, count, scale_.get());
  }

  // Prefetches the rows to take next. The hardware prefetcher does not follow the order in which a
  // transposition reads them; packed tables are read in sequence and need none.
  SSEPT_INLINE void prefetch(int64_t first, int64_t last) const {
    if (table_.packed) return;
    const auto* end = reinterpret_cast<const char*>(table_.row(last));
    for (auto* at = reinterpret_cast<const char*>(table_.row(first)); at < end; at += 64)
      __builtin_prefetch(at);
  }

  // Takes these rows, ITEMS at most.
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

  // The scores (count, ITEMS) for queries (count, W); those beyond the items that were taken
  // mean nothing.
  template <class S>
  SSEPT_INLINE void score(const A* queries, int64_t count, A* scores) const {
    constexpr int64_t kVectors =
        ITEMS == kTileItems ? 12 : std::min<int64_t>(8, ITEMS / S::template kLanes<A>);
    int64_t r = 0;
    for (; ITEMS == kTileItems && r + S::kRows <= count; r += S::kRows)
      score_rows<S, ITEMS, S::kRows, 3>(table_.width, queries + r * table_.width, panel_.get(),
                                        scores + r * ITEMS);
    for (; r < count; ++r)
      score_rows<S, ITEMS, 1, kVectors>(table_.width, queries + r * table_.width, panel_.get(),
                                        scores + r * ITEMS);
    for (r = 0; table_.scale && r < count; ++r)
      for (int64_t i = 0; i < ITEMS; i += S::template kLanes<A>)
        S::store(scores + r * ITEMS + i, S::load(scores + r * ITEMS + i) * S::load(scale_ + i));
  }

 private:
  template <class S>
  SSEPT_INLINE void transpose(const A* rows, int64_t count) {
    pack_transposed<S>(rows, table_.width, count, table_.width, ITEMS, panel_.get());
  }

  template <class S>
  SSEPT_INLINE void take_packed(const T* from, int64_t count, A* to) {
    for (int64_t d = 0; d < table_.width; ++d)
      widen<S>(from + d * kPackedItems, count, to + d * ITEMS);
  }

  ItemTable<T> table_;
  Buffer<A> rows_, panel_, scale_;
};

}  // namespace ssept::cpu
