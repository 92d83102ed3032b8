// Drawing items that a user has not seen. Plain C++: no torch, no Python.
#pragma once
#include <cstdint>

namespace ssept::sampler {

// What each of R rows has not seen of items 1 to I; built by `ssept_ext/sampling/negatives.py`.
// Views of arrays that somebody else keeps alive.
struct UnseenItems {
  const int64_t* seen_starts;     // (R + 1) of the rows' S distinct items
  const int32_t* unseen_below;    // (S) the weight of the unseen items below each, ascending
  const int32_t* seen_through;    // (S) the weight of the seen ones up to it; null: all weigh 1
  const int64_t* unseen_weight;   // (R) of all items that the row has not seen
  const int32_t* weight_through;  // (I + 1) of the items 0 to i; null where every item weighs 1
  int64_t item_num;               // I
};

// Asks for what `draw_unseen` will read of the row, which is longest to wait for.
inline void prefetch(const UnseenItems& unseen, int64_t row) {
  constexpr int64_t kInLine = 64 / sizeof(int32_t);
  for (int64_t i = unseen.seen_starts[row]; i < unseen.seen_starts[row + 1]; i += kInLine)
    __builtin_prefetch(unseen.unseen_below + i);
}

// Turns random words into items that the row has not seen; in place, if both are the same memory.
void draw_unseen(const UnseenItems& unseen, int64_t row, const uint64_t* words, int64_t count,
                 int64_t* items);

}  // namespace ssept::sampler
