// The arguments of the kernels of `top_k` and `item_ranks`, on either device. No torch headers: .cu
// files include this.
#pragma once
#include <cstdint>

#include "common/accumulator.h"

namespace ssept {

// Items of a packed table whose elements lie side by side: (groups, W, kPackedItems).
constexpr int64_t kPackedItems = 64;

// An item's score is the inner product of its row with the query, times its scale.
template <class T>
struct ItemTable {
  using A = Accumulator<T>;
  const T* data;   // (R, W), or packed
  const A* scale;  // (R), or null
  int64_t rows;    // R
  int64_t width;   // W
  bool packed;

  // The first element of a row, whose next ones follow kPackedItems further each if it is packed.
  constexpr const T* row(int64_t id) const {
    return packed ? data + id / kPackedItems * width * kPackedItems + id % kPackedItems
                  : data + id * width;
  }
};

// Queries, and the items that each of them has not seen.
template <class T>
struct Ranking {
  using A = Accumulator<T>;
  ItemTable<T> table;
  const A* queries;             // (B, W)
  const int64_t* seen_items;    // (M), 0 for none, or null
  const int64_t* seen_offsets;  // (B + 1), or null
  int64_t num_queries;          // B
  int64_t num_items;            // 1 to this are ranked
  int64_t num_seen;             // M
};

template <class T>
struct TopK : Ranking<T> {
  const int64_t* candidates;  // (num_items), ascending, which are ranked instead, or null
  int64_t k;
  int64_t* items;          // (B, k), 0 where there are fewer
  Accumulator<T>* scores;  // (B, k), -inf there; NaN in a row with a score that is not finite
};

template <class T>
struct ItemRanks : Ranking<T> {
  const int64_t* targets;       // (B), 0 for none
  const Accumulator<T>* given;  // (B) the targets' scores, or null
  int64_t* ranks;               // (B, 2): how many other items score higher, or at least the same
  Accumulator<T>* scores;       // (B) the targets' scores
};

}  // namespace ssept
