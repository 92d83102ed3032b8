// Sums over rows, in parts that are added up at the end: a function of the shape alone, so that
// they are the same on every GPU.
#pragma once
#include <cstdint>

namespace ssept::cuda {

// Rows whose gradients of parameters are summed together first.
inline int64_t rows_per_part(int64_t num_rows) {
  return num_rows <= 32 * 1024 ? 32 : (num_rows + 1023) / 1024;
}
inline int64_t num_parts(int64_t num_rows) {
  const int64_t rows = rows_per_part(num_rows);
  return (num_rows + rows - 1) / rows;
}

// (num_parts, width) of rows of `row` elements, to be added up.
template <class A>
struct Parts {
  const A* parts;
  int64_t num_parts, row;
  A* sum;  // (width)
  int64_t width;
};

template <class A, int COUNT>
struct PartsOf {
  Parts<A> of[COUNT];
};

}  // namespace ssept::cuda
