// Rows of one head, ready for products.
#pragma once
#include "cpu/tiles.h"

namespace ssept::cpu::attention {

constexpr int64_t kTile = 32;

template <class A>
int64_t tile_width(int64_t head_size) {
  return (head_size + kMaxLanes<A> - 1) / kMaxLanes<A> * kMaxLanes<A>;
}

// Rows for sums over their columns (across), and for sums over the rows (down): these are the same
// elements, unless elements are pairs.
template <class A>
class RowTile {
 public:
  RowTile(int64_t rows, int64_t head_size)
      : across_(rows * tile_width<A>(head_size)), down_(rows * tile_width<A>(head_size)) {}

  template <class E>
  E* across() const {
    return across_.template as<E>();
  }
  template <class E>
  E* down() const {
    return std::is_same_v<E, A> ? across<E>() : down_.template as<E>();
  }

  // Takes rows of x, plus `bias` if there is one, with zeros up to `tile_rows`, for sums of the
  // kinds that are wanted; times `scale`, except pairs, which that would round once more. Returns
  // whether what is for sums over the rows is finite.
  template <class S, bool ACROSS, bool DOWN, class T>
  SSEPT_INLINE bool pack(const T* x, int64_t x_row, int64_t rows, int64_t width, A scale,
                         int64_t tile_rows, const A* bias = nullptr) {
    if constexpr (std::is_same_v<Element<S, T>, Pair>)
      return pack_pairs<S, ACROSS, DOWN>(x, x_row, rows, width, tile_rows, across<Pair>(),
                                         down<Pair>(), bias);
    else
      return pack_rows<S>(x, x_row, rows, width, scale, tile_rows, across<A>(), bias);
  }

 private:
  Buffer<A> across_, down_;
};

// (width, kTile) from rows of x, by way of `tile` where elements are pairs.
template <class S, class T, class A = Accumulator<T>>
SSEPT_INLINE void transpose_rows(const T* x, int64_t x_row, int64_t rows, int64_t width,
                                 RowTile<A>& tile, const Buffer<A>& to, const A* bias = nullptr) {
  if constexpr (std::is_same_v<Element<S, T>, Pair>) {
    const int64_t pairs = S::template whole_vectors<A>(elements_of<Pair>(width));
    tile.template pack<S, true, false>(x, x_row, rows, width, A(1), whole_elements<Pair>(rows),
                                       bias);
    pack_transposed<S>(tile.template across<Pair>(), pairs, rows, pairs, kTile,
                       to.template as<Pair>());
  } else {
    pack_transposed<S>(x, x_row, rows, width, kTile, to.get(), bias);
  }
}

// Elements for sums over the columns of `rows` rows of kTile numbers: these, or pairs of them.
template <class S, class E, class A>
SSEPT_INLINE const E* elements_across(A* x, int64_t rows, A* pairs) {
  if constexpr (std::is_same_v<E, A>) {
    return x;
  } else {
    E* const to = reinterpret_cast<E*>(pairs);
    for (int64_t r = 0; r < rows; ++r, x += kTile)
      S::store(to + r * kTile,
               pairs_across<S>(rounded<S>(S::load(x)), rounded<S>(S::load(x + kTile / 2))));
    return to;
  }
}

// Pairs of neighbours in the columns of an even number of rows, written over the first half of them
// in a tile, where elements are pairs.
template <class S, class E, class A>
SSEPT_INLINE void make_elements_down(A* tile, int64_t first_row, int64_t rows) {
  if constexpr (std::is_same_v<E, Pair>)
    for (int64_t r = first_row; r < first_row + rows; r += 2)
      for (int64_t j = 0; j < kTile; j += S::template kLanes<A>)
        S::store(reinterpret_cast<E*>(tile) + r / 2 * kTile + j,
                 pairs_down<S>(rounded<S>(S::load(tile + r * kTile + j)),
                               rounded<S>(S::load(tile + (r + 1) * kTile + j))));
}

}  // namespace ssept::cpu::attention
