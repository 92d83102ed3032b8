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

template <class S, int VECS, int TAIL, class A>
SSEPT_INLINE void multiply_panel(bool add, int64_t rows, int64_t depth, const A* a, int64_t a_row,
                                 int64_t a_column, const A* b, int64_t b_row, A* c, int64_t c_row) {
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
    multiply_panel<S, VECS, 0, A>(args...);
  } else {
    const int64_t bytes = (columns - VECS * kLanes) * static_cast<int64_t>(sizeof(A));
    if (bytes > kLanes * static_cast<int64_t>(sizeof(A)))
      multiply_columns<S, VECS + 1, A>(columns, args...);
    else if (kLanes * sizeof(A) > 16 && bytes <= 16)
      multiply_panel<S, VECS, 16, A>(args...);
    else if (kLanes * sizeof(A) > 32 && bytes <= 32)
      multiply_panel<S, VECS, 32, A>(args...);
    else
      multiply_panel<S, VECS + 1, 0, A>(args...);
  }
}

template <class A>
SSEPT_SIMD_CLONES void add_rows(const std::vector<std::vector<A>>& parts, int64_t from, int64_t row,
                                A* to, int64_t columns, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    std::copy_n(parts[0].data() + from + r * row, columns, to + r * columns);
    for (size_t part = 1; part < parts.size(); ++part)
      add_scaled(to + r * columns, A(1), parts[part].data() + from + r * row, columns);
  }
}

}  // namespace

template <class A>
Panels<A>::Panels(int64_t depth, int64_t columns)
    : depth_(depth), columns_(columns), data_((depth + kMaxLanes<A>)*(columns + kMaxLanes<A>)) {}

template <class A>
void Panels<A>::pack(const A* b, int64_t b_row, int64_t depth) {
  depth_ = depth;
  with_simd([&]<class S>(S) SSEPT_INLINE_LAMBDA {
    constexpr int64_t kLanes = S::template kLanes<A>;
    const int64_t panel_rows = S::template whole_vectors<A>(depth_);
    for (int64_t d = 0; d < depth_; ++d)  // each row at once, as memory is read in its order
      for (int64_t i = 0, width; i < columns_; i += width) {
        width = panel_width<S, A>(columns_ - i);
        const A* from = b + d * b_row + i;
        A* to = data_ + i * panel_rows + d * width;
        int64_t j = 0;
        for (; j + kLanes <= std::min(width, columns_ - i); j += kLanes)
          S::store(to + j, S::load(from + j));
        for (; j < width; ++j) to[j] = i + j < columns_ ? from[j] : A(0);
      }
  });
}

template <class A>
void Panels<A>::pack_transposed(const A* b, int64_t b_row) {
  with_simd([&]<class S>(S) SSEPT_INLINE_LAMBDA {
    for (int64_t i = 0, width; i < columns_; i += width) {
      width = panel_width<S, A>(columns_ - i);
      cpu::pack_transposed<S>(b + i * b_row, b_row, std::min(width, columns_ - i), depth_, width,
                              data_ + i * S::template whole_vectors<A>(depth_));
    }
  });
}

template <class A>
void Panels<A>::multiply(bool add, int64_t rows, const A* a, int64_t a_row, int64_t a_column, A* c,
                         int64_t c_row) const {
  with_simd([&]<class S>(S) SSEPT_INLINE_LAMBDA {
    for (int64_t i = 0, width; i < columns_; i += width) {
      width = panel_width<S, A>(columns_ - i);
      const A* b = data_ + i * S::template whole_vectors<A>(depth_);
      multiply_columns<S, 0, A>(std::min(width, columns_ - i), add, rows, depth_, a, a_row,
                                a_column, b, width, c + i, c_row);
    }
  });
}

template <class A>
void add_parts(const std::vector<std::vector<A>>& parts, int64_t from, int64_t row, A* to,
               int64_t rows, int64_t columns) {
  torch::stable::parallel_for(
      0, rows, grain(static_cast<int64_t>(parts.size()) * columns),
      [&](int64_t begin, int64_t end) { add_rows(parts, from, row, to, columns, begin, end); });
}

template class Panels<float>;
template class Panels<double>;
template void add_parts(const std::vector<std::vector<float>>&, int64_t, int64_t, float*, int64_t,
                        int64_t);
template void add_parts(const std::vector<std::vector<double>>&, int64_t, int64_t, double*, int64_t,
                        int64_t);

}  // namespace ssept::cpu
