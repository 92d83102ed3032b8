// Products of rows with a matrix that stays in cache, for the registers of this machine.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/tiles.h"

namespace ssept::cpu {

// Rows of a product that are computed at once, at most: rows of A that are rounded up to it are
// faster than a rest.
constexpr int64_t kProductRows = 8;

// Rows that go through a layer at once: what they need stays in the cache of a core.
constexpr int64_t kRowsPerBlock = 128;

// Rows whose gradients of parameters are summed together first: fixed, so that sums do not depend
// on the number of threads, and enough for `sums`, as many vectors as long as a row, to take no
// more memory than the rows.
inline int64_t rows_per_part(int64_t sums) {
  return std::max<int64_t>(512, sums / kRowsPerBlock * kRowsPerBlock);
}

inline int64_t whole(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

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

// `count` sums of each part of the rows, to which f(sums, begin, end) adds those of rows [begin,
// end).
template <class A, class F>
std::vector<std::vector<A>> sums_of_parts(int64_t num_rows, int64_t part_rows, int64_t count,
                                          F&& f) {
  std::vector<std::vector<A>> parts(std::max<int64_t>(1, whole(num_rows, part_rows) / part_rows));
  torch::stable::parallel_for(
      0, static_cast<int64_t>(parts.size()), 1, [&](int64_t first, int64_t last) {
        for (int64_t part = first; part < last; ++part) {
          parts[part].resize(count);
          f(parts[part].data(), part * part_rows, std::min(num_rows, (part + 1) * part_rows));
        }
      });
  return parts;
}

// to = what all parts add up to of (rows, columns), whose rows lie `row` sums apart in a part, the
// first at `from`.
template <class A>
void add_parts(const std::vector<std::vector<A>>& parts, int64_t from, int64_t row, A* to,
               int64_t rows, int64_t columns);

}  // namespace ssept::cpu
