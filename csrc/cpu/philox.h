// The random words of dropout, for many elements at once: the bits that reference.py defines.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/dropout.h"
#include "cpu/registers.h"

namespace ssept::cpu {

// Rows first, first + step, ..., of which there are `count`; of each the columns 4 first_quad to
// 4 (first_quad + quads) - 1.
struct PhiloxBlock {
  int64_t first_row, row_step, rows;
  int64_t first_quad, quads;

  int64_t words() const { return 4 * quads * rows; }
};

// Room behind the words that `philox_words` may overwrite.
constexpr int64_t kPhiloxSlack = 128;

// Writes the words of `block`, (rows, 4 quads), to `words`.
void philox_words(uint32_t* words, const PhiloxBlock& block, uint32_t site, int64_t seed);

// Sets to zero what dropout drops of a row, whose words these are; does not scale the rest.
template <class A>
SSEPT_INLINE void drop(A* x, int64_t n, const uint32_t* words, const DropoutSite& dropout) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) x[i] = words[i] < dropout.threshold ? A(0) : x[i];
}

// x, with zeros in the lanes that dropout drops. Null words drop none.
template <class S, class A>
SSEPT_INLINE typename S::template Vec<A> dropped(typename S::template Vec<A> x,
                                                 const uint32_t* words, uint32_t threshold) {
  using Vec = typename S::template Vec<A>;
  if (words == nullptr) return x;
  if constexpr (sizeof(A) == sizeof(uint32_t)) {
    const auto bits = S::load(words);
    return bits < typename S::template Vec<uint32_t>{} + threshold ? Vec{} : x;
  } else {
    for (int64_t i = 0; i < S::template kLanes<A>; ++i) x[i] = words[i] < threshold ? A(0) : x[i];
    return x;
  }
}

// Dropout of whole rows that are visited in rising order, up to `last_row`.
class RowDropout {
 public:
  RowDropout(const DropoutSite& dropout, int64_t width, int64_t last_row)
      : dropout_(dropout),
        quads_((width + 3) / 4),
        rows_at_once_(std::max<int64_t>(1, kWordsAtOnce / std::max<int64_t>(1, 4 * quads_))),
        last_row_(last_row),
        words_(dropout.seed ? 4 * quads_ * rows_at_once_ + kPhiloxSlack : 0) {}

  template <class A>
  SSEPT_INLINE void apply(A* x, int64_t n, int64_t row) {
    if (const uint32_t* const of_row = words(row); of_row != nullptr) drop(x, n, of_row, dropout_);
  }

  // Those of a row, or null where nothing is dropped.
  SSEPT_INLINE const uint32_t* words(int64_t row) {
    if (!dropout_.seed || quads_ == 0) return nullptr;
    if (row >= drawn_through_) draw(row);
    return words_.data() + (row - first_drawn_) * 4 * quads_;
  }

 private:
  static constexpr int64_t kWordsAtOnce = 2048;

  void draw(int64_t row) {
    first_drawn_ = row;
    drawn_through_ = std::min(row + rows_at_once_, last_row_);
    philox_words(words_.data(), {row, 1, drawn_through_ - row, 0, quads_}, dropout_.site,
                 *dropout_.seed);
  }

  DropoutSite dropout_;
  int64_t quads_, rows_at_once_, last_row_;
  int64_t first_drawn_ = 0, drawn_through_ = 0;
  std::vector<uint32_t> words_;
};

}  // namespace ssept::cpu
