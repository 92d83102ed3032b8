// Compares the vector code of csrc/cpu with plain loops, on the registers of the machine that this
// is compiled for. Prints the names of what differs, and ends with their number.
#include <cmath>
#include <cstdio>
#include <vector>

#include "cpu/tiles.h"
#include "cpu/vector_ops.h"

namespace ssept::cpu {
namespace {

using Row = std::vector<float>;

Row numbers(int64_t count, float scale) {
  Row x(count);
  for (int64_t i = 0; i < count; ++i) x[i] = scale * static_cast<float>((i * 37 % 101) - 50) / 50;
  return x;
}

int failures = 0;

void compare(const char* name, const Row& found, const Row& expected) {
  for (size_t i = 0; i < expected.size(); ++i)
    if (!(std::abs(found[i] - expected[i]) <= 1e-5f * (1 + std::abs(expected[i])))) {
      std::printf("%s: element %zu is %g, expected %g\n", name, i, found[i], expected[i]);
      ++failures;
      return;
    }
}

template <class S>
void compare_products(int64_t columns, int64_t depth) {
  const int64_t rows = S::kRows, width = S::template whole_vectors<float>(columns) + 64;
  const Row a = numbers(rows * depth, 1), b = numbers(depth * width, 2);
  Row found = numbers(rows * width, 3), expected = found;
  multiply_rows<S, true>(columns, depth, a.data(), depth, 1, b.data(), width, found.data(), width);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < columns; ++i)
      for (int64_t d = 0; d < depth; ++d)
        expected[r * width + i] += a[r * depth + d] * b[d * width + i];
  for (int64_t r = 0; r < rows; ++r)
    compare("multiply_rows", Row(found.begin() + r * width, found.begin() + r * width + columns),
            Row(expected.begin() + r * width, expected.begin() + r * width + columns));
}

template <class S>
void compare_transposed(int64_t rows, int64_t width) {
  const int64_t columns = S::template whole_vectors<float>(rows);
  const Row x = numbers(rows * width, 1);
  Row found(S::template whole_vectors<float>(width) * columns, -1), expected(width * columns, 0);
  pack_transposed<S>(x.data(), width, rows, width, columns, found.data());
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < width; ++i) expected[i * columns + r] = x[r * width + i];
  compare("pack_transposed", found, expected);
}

template <class S>
void compare_sums(int64_t n) {
  const Row x = numbers(n, 1), y = numbers(n, 2);
  float sum = 0;
  Row found = y, expected = y;
  for (int64_t i = 0; i < n; ++i) sum += x[i] * y[i], expected[i] += 3 * x[i];
  compare("dot", {dot<S>(x.data(), y.data(), n)}, {sum});
  add_all_scaled<S, float>(
      found.data(), 2,
      [&](int64_t i) {
        return std::pair<float, const float*>(1.0f + static_cast<float>(i), x.data());
      },
      n);
  compare("add_all_scaled", found, expected);
}

template <class S>
void compare_exponentials() {
  constexpr int64_t kLanes = S::template kLanes<float>;
  Row x = numbers(kLanes * 32, 80), expected(x);
  for (float& value : expected) value = std::exp(value);
  for (int64_t i = 0; i < std::ssize(x); i += kLanes)
    S::store(x.data() + i, exponential<S, float>(S::load(x.data() + i)));
  compare("exponential", x, expected);
}

template <class S>
void compare_all() {
  for (const int64_t size : {1, 3, 4, 7, 16, 33, 50}) {
    compare_products<S>(size, 50);
    compare_transposed<S>(size, 13);
    compare_transposed<S>(13, size);
    compare_sums<S>(size);
  }
  compare_exponentials<S>();
}

}  // namespace
}  // namespace ssept::cpu

int main() {
  ssept::cpu::compare_all<ssept::cpu::Simd<16, 4>>();
  return ssept::cpu::failures;
}
