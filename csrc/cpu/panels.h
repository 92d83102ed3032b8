// Products of rows with a matrix that stays in cache, for the registers of this machine.
#pragma once
#include <cstdint>

#include "cpu/tiles.h"

namespace ssept::cpu {

// Rows of a product that are computed at once, at most: rows of A that are rounded up to it are
// faster than a rest.
constexpr int64_t kProductRows = 8;

// The right side of a product, (depth, columns), copied to panels: as many columns as are computed
// at once, row by row.
template <class A>
class Panels {
 public:
  Panels(int64_t depth, int64_t columns);

  // Takes the first `depth` rows of b; its transpose is a matter of strides.
  void pack(const A* b, int64_t b_row, int64_t depth);
  void pack_transposed(const A* b, int64_t b_row);

  // C = A · B, or C += A · B: (rows, columns) of (rows, depth) and these panels. Rows of C must
  // have room for `columns` in whole vectors. Transposed A is a matter of its strides.
  void multiply(bool add, int64_t rows, const A* a, int64_t a_row, int64_t a_column, A* c,
                int64_t c_row) const;

 private:
  int64_t depth_, columns_;
  Buffer<A> data_;
};

}  // namespace ssept::cpu
