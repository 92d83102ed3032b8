#include "ops/top_k/cpu_tiles.h"

#include <cmath>

namespace ssept::cpu {
namespace {

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

template <class S, class A>
SSEPT_INLINE void multiply_by(const A* scale, int64_t count, A* scores) {
  for (int64_t i = 0; i < count; i += S::template kLanes<A>)
    S::store(scores + i, S::load(scores + i) * S::load(scale + i));
}

// (width, ITEMS) of rows.
template <int64_t ITEMS, class A>
void pack_panel(const A* rows, int64_t count, int64_t width, A* panel) {
  with_simd([&]<class S>(S) SSEPT_INLINE_LAMBDA {
    pack_transposed<S>(rows, width, count, width, ITEMS, panel);
  });
}

template <int64_t ITEMS, class A>
void score_tile(int64_t width, const A* queries, int64_t count, const A* panel, const A* scale,
                A* scores) {
  with_simd([&]<class S>(S) SSEPT_INLINE_LAMBDA {
    constexpr int64_t kVectors =
        ITEMS == kTileItems ? 12 : std::min<int64_t>(8, ITEMS / S::template kLanes<A>);
    int64_t r = 0;
    for (; ITEMS == kTileItems && r + S::kRows <= count; r += S::kRows)
      score_rows<S, ITEMS, S::kRows, 3>(width, queries + r * width, panel, scores + r * ITEMS);
    for (; r < count; ++r)
      score_rows<S, ITEMS, 1, kVectors>(width, queries + r * width, panel, scores + r * ITEMS);
    for (r = 0; scale && r < count; ++r) multiply_by<S>(scale, ITEMS, scores + r * ITEMS);
  });
}

}  // namespace

template <class T, int64_t ITEMS>
Tile<T, ITEMS>::Tile(const ItemTable<T>& table)
    : table_(table),
      rows_(ITEMS * table.width),
      panel_((table.width + kMaxLanes<A>)*ITEMS),
      scale_(ITEMS) {
  std::fill_n(panel_.get(), (table.width + kMaxLanes<A>)*ITEMS, A(0));
  std::fill_n(scale_.get(), ITEMS, A(1));
}

template <class T, int64_t ITEMS>
void Tile<T, ITEMS>::take(int64_t first, int64_t count) {
  const int64_t width = table_.width;
  if (table_.packed) {
    with_simd([&]<class S>(S) SSEPT_INLINE_LAMBDA {
      for (int64_t i = 0, n; i < count; i += n) {
        n = std::min(count - i, kPackedItems - (first + i) % kPackedItems);
        const T* from = table_.row(first + i);
        for (int64_t d = 0; d < width; ++d)
          widen<S>(from + d * kPackedItems, n, panel_ + d * ITEMS + i);
      }
    });
  } else if constexpr (std::is_same_v<T, A>) {
    pack_panel<ITEMS>(table_.row(first), count, width, panel_.get());
  } else {
    with_simd([&]<class S>(S)
                  SSEPT_INLINE_LAMBDA { widen<S>(table_.row(first), count * width, rows_.get()); });
    pack_panel<ITEMS>(rows_.get(), count, width, panel_.get());
  }
  if (table_.scale) std::copy_n(table_.scale + first, count, scale_.get());
}

template <class T, int64_t ITEMS>
void Tile<T, ITEMS>::take(const int64_t* ids, int64_t count) {
  const int64_t width = table_.width;
  with_simd([&]<class S>(S) SSEPT_INLINE_LAMBDA {
    for (int64_t j = 0; j < count; ++j) {
      const T* row = table_.row(ids[j]);
      A* to = rows_ + j * width;
      if (table_.packed)
        for (int64_t i = 0; i < width; ++i) to[i] = static_cast<A>(row[i * kPackedItems]);
      else
        widen<S>(row, width, to);
    }
  });
  for (int64_t j = 0; table_.scale && j < count; ++j) scale_.get()[j] = table_.scale[ids[j]];
  pack_panel<ITEMS>(rows_.get(), count, width, panel_.get());
}

template <class T, int64_t ITEMS>
void Tile<T, ITEMS>::score(const A* queries, int64_t count, A* scores) const {
  score_tile<ITEMS>(table_.width, queries, count, panel_.get(),
                    table_.scale ? scale_.get() : nullptr, scores);
}

template class Tile<double, kTileItems>;
template class Tile<double, kSmallTileItems>;
template class Tile<float, kTileItems>;
template class Tile<float, kSmallTileItems>;
template class Tile<torch::headeronly::Half, kTileItems>;
template class Tile<torch::headeronly::Half, kSmallTileItems>;
template class Tile<torch::headeronly::BFloat16, kTileItems>;
template class Tile<torch::headeronly::BFloat16, kSmallTileItems>;
template class Tile<int8_t, kTileItems>;
template class Tile<int8_t, kSmallTileItems>;

}  // namespace ssept::cpu
