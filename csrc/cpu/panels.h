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

inline int64_t whole(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Rows whose gradients of parameters are summed together first, in parts of about the same length,
// which do not depend on the number of threads: enough for `sums`, as many vectors as long as a
// row, to take no more memory than the rows.
inline int64_t rows_per_part(int64_t num_rows, int64_t sums) {
  const int64_t most = std::max(std::clamp<int64_t>(num_rows / 16, 512, 1024), sums);
  const int64_t parts = std::max<int64_t>(1, (num_rows + most - 1) / most);
  return std::max(kProductRows, whole((num_rows + parts - 1) / parts, kProductRows));
}

// The left side of products as the registers take it: elements of T's products, `row` and `column`
// apart.
template <class T>
struct LeftSide {
  const void* elements;
  int64_t row, column;
};

// Makes left sides of rows of T: these where they are, or a copy where products are of other
// elements, which holds until the next is made.
template <class T>
class LeftSideMaker {
 public:
  using A = Accumulator<T>;

  LeftSideMaker(int64_t max_rows, int64_t max_columns)
      : copy_(std::is_same_v<T, A> ? 0 : whole(max_rows, 2) * whole(max_columns, kMaxLanes<A>)) {}

  // x, (rows, columns), and its transpose.
  LeftSide<T> rows(const T* x, int64_t x_row, int64_t rows, int64_t columns) const;
  LeftSide<T> transposed(const T* x, int64_t x_row, int64_t rows, int64_t columns) const;

 private:
  Buffer<A> copy_;
};

// The right side of a product, (depth, columns) of T, copied to panels: as many columns as are
// computed at once, row by row.
template <class T>
class Panels {
 public:
  using A = Accumulator<T>;

  Panels(int64_t depth, int64_t columns);

  // Takes the first `depth` rows of b; its transpose is a matter of strides.
  void pack(const T* b, int64_t b_row, int64_t depth);
  void pack_transposed(const T* b, int64_t b_row);

  // C = A · B, or C += A · B: (rows, columns) of (rows, depth) and these panels. Rows of C must
  // have room for `columns` in whole vectors.
  void multiply(bool add, int64_t rows, const LeftSide<T>& a, A* c, int64_t c_row) const;

 private:
  int64_t depth_, columns_;
  Buffer<A> data_;
};

// What a thread needs to multiply a block of rows.
template <class T>
struct BlockMemory {
  Buffer<Accumulator<T>> product;
  LeftSideMaker<T> left;
};

// Calls f(begin, end, memory) on blocks of rows, which threads take as they are free, each with
// memory of its own, for rows of `columns` and for products whose rows are `product_row` apart.
template <class T, class F>
void for_each_block(int64_t num_rows, int64_t columns, int64_t product_row, F&& f) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t least = whole(num_rows / (4 * threads) + 1, kRowsPerBlock / 4);
  const int64_t rows = std::min(kRowsPerBlock, least);
  const auto make = [&] {
    return BlockMemory<T>{Buffer<Accumulator<T>>(kRowsPerBlock * product_row),
                          LeftSideMaker<T>(kRowsPerBlock, columns)};
  };
  for_each_part((num_rows + rows - 1) / rows, make, [&](int64_t block, const auto& memory) {
    f(block * rows, std::min(num_rows, (block + 1) * rows), memory);
  });
}

// `count` sums of each part of the rows, to which f(sums, begin, end) adds those of rows [begin,
// end).
template <class A, class F>
std::vector<std::vector<A>> sums_of_parts(int64_t num_rows, int64_t part_rows, int64_t count,
                                          F&& f) {
  std::vector<std::vector<A>> parts(std::max<int64_t>(1, whole(num_rows, part_rows) / part_rows));
  for_each_part(static_cast<int64_t>(parts.size()), no_memory, [&](int64_t part, int) {
    parts[part].resize(count);
    f(parts[part].data(), part * part_rows, std::min(num_rows, (part + 1) * part_rows));
  });
  return parts;
}

// to = what all parts add up to of (rows, columns), whose rows lie `row` sums apart in a part, the
// first at `from`.
template <class A, class T>
void add_parts(const std::vector<std::vector<A>>& parts, int64_t from, int64_t row, T* to,
               int64_t rows, int64_t columns);

}  // namespace ssept::cpu
