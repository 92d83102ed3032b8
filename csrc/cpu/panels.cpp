#include "cpu/panels.h"

#include <algorithm>

#include "cpu/vector_ops.h"

namespace ssept::cpu {
namespace {

// With eight rows, three vectors fill the registers.
constexpr int64_t kMaxVectors = 3;

// Columns of the first panel, where so many are left: panels are about equally wide, the last,
// which need not be full, the widest.
template <class S, class A>
SSEPT_INLINE int64_t panel_width(int64_t columns) {
  const int64_t vectors = S::template whole_vectors<A>(columns) / S::template kLanes<A>;
  return vectors / ((vectors + kMaxVectors - 1) / kMaxVectors) * S::template kLanes<A>;
}

template <class S, int VECS, int TAIL, class E, class A>
SSEPT_INLINE void multiply_panel(bool add, int64_t rows, int64_t depth, const E* a, int64_t a_row,
                                 int64_t a_column, const E* b, int64_t b_row, A* c, int64_t c_row) {
  int64_t r = 0;
  for (; r + S::kRows <= rows; r += S::kRows)
    multiply_block<S, S::kRows, VECS, TAIL>(add, depth, a + r * a_row, a_row, a_column, b, b_row,
                                            c + r * c_row, c_row);
  for (; r < rows; ++r)
    multiply_block<S, 1, VECS, TAIL>(add, depth, a + r * a_row, a_row, a_column, b, b_row,
                                     c + r * c_row, c_row);
}

// As many columns of the panel as there are, in the narrowest vectors that hold them.
template <class S, int VECS, class A, class... Args>
SSEPT_INLINE void multiply_columns(int64_t columns, Args... args) {
  constexpr int64_t kLanes = S::template kLanes<A>;
  if constexpr (VECS == kMaxVectors) {
    multiply_panel<S, VECS, 0>(args...);
  } else {
    const int64_t bytes = (columns - VECS * kLanes) * static_cast<int64_t>(sizeof(A));
    if (bytes > kLanes * static_cast<int64_t>(sizeof(A)))
      multiply_columns<S, VECS + 1, A>(columns, args...);
    else if (kLanes * sizeof(A) > 16 && bytes <= 16)
      multiply_panel<S, VECS, 16>(args...);
    else if (kLanes * sizeof(A) > 32 && bytes <= 32)
      multiply_panel<S, VECS, 32>(args...);
    else
      multiply_panel<S, VECS + 1, 0>(args...);
  }
}

template <class A, class T>
SSEPT_SIMD_CLONES void add_rows(const std::vector<std::vector<A>>& parts, int64_t from, int64_t row,
                                T* to, int64_t columns, int64_t begin, int64_t end) {
  std::vector<A> sum(columns);
  for (int64_t r = begin; r < end; ++r) {
    std::copy_n(parts[0].data() + from + r * row, columns, sum.data());
    for (size_t part = 1; part < parts.size(); ++part)
      add_scaled(sum.data(), A(1), parts[part].data() + from + r * row, columns);
    for (int64_t i = 0; i < columns; ++i) to[r * columns + i] = static_cast<T>(sum[i]);
  }
}

}  // namespace

template <class T>
LeftSide<T> LeftSideMaker<T>::rows(const T* x, int64_t x_row, int64_t rows, int64_t columns) const {
  LeftSide<T> side{x, x_row, 1};
  if constexpr (!std::is_same_v<T, A>)
    with_simd<T>([&]<class S>(S) SSEPT_INLINE_LAMBDA {
      const int64_t copy_row = S::template whole_vectors<A>(elements_of<Element<S, T>>(columns));
      if constexpr (std::is_same_v<Element<S, T>, A>) {
        pack_rows<S>(x, x_row, rows, columns, A(1), rows, copy_.get());
      } else if (x_row % 2 == 0 && columns % 2 == 0) {  // pairs already
        side.row = x_row / 2;
        return;
      } else {
        pack_pairs<S, true, false>(x, x_row, rows, columns, whole(rows, 2),
                                   copy_.template as<Pair>(), nullptr);
      }
      side = {copy_.get(), copy_row, 1};
    });
  return side;
}

template <class T>
LeftSide<T> LeftSideMaker<T>::transposed(const T* x, int64_t x_row, int64_t rows,
                                         int64_t columns) const {
  LeftSide<T> side{x, 1, x_row};
  if constexpr (!std::is_same_v<T, A>)
    with_simd<T>([&]<class S>(S) SSEPT_INLINE_LAMBDA {
      if constexpr (std::is_same_v<Element<S, T>, A>)
        pack_rows<S>(x, x_row, rows, columns, A(1), rows, copy_.get());
      else
        pack_pairs<S, false, true>(x, x_row, rows, columns, whole(rows, 2), nullptr,
                                   copy_.template as<Pair>());
      side = {copy_.get(), 1, S::template whole_vectors<A>(columns)};
    });
  return side;
}

template <class T>
Panels<T>::Panels(int64_t depth, int64_t columns)
    : depth_(depth), columns_(columns), data_((depth + kMaxLanes<A>)*(columns + kMaxLanes<A>)) {}

template <class T>
void Panels<T>::pack(const T* b, int64_t b_row, int64_t depth) {
  depth_ = depth;
  with_simd<T>([&]<class S>(S) SSEPT_INLINE_LAMBDA {
    using E = Element<S, T>;
    const int64_t panel_rows = S::template whole_vectors<A>(elements_of<E>(depth_));
    if constexpr (std::is_same_v<E, Pair>) {
      for (int64_t i = 0, width; i < columns_; i += width) {
        width = panel_width<S, A>(columns_ - i);
        pack_pairs<S, false, true>(b + i, b_row, depth_, std::min(width, columns_ - i),
                                   whole_elements<E>(depth_), nullptr,
                                   data_.template as<E>() + i * panel_rows);
      }
    } else {
      for (int64_t d = 0; d < depth_; ++d)  // each row at once, as memory is read in its order
        for (int64_t i = 0, width; i < columns_; i += width) {
          width = panel_width<S, A>(columns_ - i);
          const T* from = b + d * b_row + i;
          A* to = data_ + i * panel_rows + d * width;
          int64_t j = 0;
          for (; j + S::template kLanes<A> <= std::min(width, columns_ - i);
               j += S::template kLanes<A>)
            S::store(to + j, load_wide<S>(from + j));
          for (; j < width; ++j) to[j] = i + j < columns_ ? static_cast<A>(from[j]) : A(0);
        }
    }
  });
}

template <class T>
void Panels<T>::pack_transposed(const T* b, int64_t b_row) {
  with_simd<T>([&]<class S>(S) SSEPT_INLINE_LAMBDA {
    using E = Element<S, T>;
    const int64_t panel_rows = S::template whole_vectors<A>(elements_of<E>(depth_));
    for (int64_t i = 0, width; i < columns_; i += width) {
      width = panel_width<S, A>(columns_ - i);
      const int64_t columns = std::min(width, columns_ - i);
      E* const to = data_.template as<E>() + i * panel_rows;
      const T* const from = b + i * b_row;
      if constexpr (std::is_same_v<E, Pair>) {
        const Buffer<Pair> pairs(whole(columns, 2) * panel_rows);
        pack_pairs<S, true, false>(from, b_row, columns, depth_, whole(columns, 2), pairs.get(),
                                   nullptr);
        cpu::pack_transposed<S>(pairs.get(), panel_rows, columns, panel_rows, width, to);
      } else {
        cpu::pack_transposed<S>(from, b_row, columns, depth_, width, to);
      }
    }
  });
}

template <class T>
void Panels<T>::multiply(bool add, int64_t rows, const LeftSide<T>& a, A* c, int64_t c_row) const {
  with_simd<T>([&]<class S>(S) SSEPT_INLINE_LAMBDA {
    using E = Element<S, T>;
    const int64_t depth = elements_of<E>(depth_);
    for (int64_t i = 0, width; i < columns_; i += width) {
      width = panel_width<S, A>(columns_ - i);
      const E* b = data_.template as<E>() + i * S::template whole_vectors<A>(depth);
      multiply_columns<S, 0, A>(std::min(width, columns_ - i), add, rows, depth,
                                static_cast<const E*>(a.elements), a.row, a.column, b, width, c + i,
                                c_row);
    }
  });
}

template <class A, class T>
void add_parts(const std::vector<std::vector<A>>& parts, int64_t from, int64_t row, T* to,
               int64_t rows, int64_t columns) {
  torch::stable::parallel_for(
      0, rows, grain(static_cast<int64_t>(parts.size()) * columns),
      [&](int64_t begin, int64_t end) { add_rows(parts, from, row, to, columns, begin, end); });
}

template class LeftSideMaker<float>;
template class LeftSideMaker<double>;
template class LeftSideMaker<Half>;
template class LeftSideMaker<BFloat16>;
template class Panels<float>;
template class Panels<double>;
template class Panels<Half>;
template class Panels<BFloat16>;
template void add_parts(const std::vector<std::vector<float>>&, int64_t, int64_t, float*, int64_t,
                        int64_t);
template void add_parts(const std::vector<std::vector<double>>&, int64_t, int64_t, double*, int64_t,
                        int64_t);
template void add_parts(const std::vector<std::vector<float>>&, int64_t, int64_t, Half*, int64_t,
                        int64_t);
template void add_parts(const std::vector<std::vector<float>>&, int64_t, int64_t, BFloat16*,
                        int64_t, int64_t);

}  // namespace ssept::cpu
