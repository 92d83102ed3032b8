// Drawing one training batch. Plain C++: no torch, no Python.
#pragma once
#include <array>
#include <cstdint>
#include <vector>

namespace ssept::sampler {

// The users who can be drawn and what they have not seen; `ssept_ext/sampler.py` builds and
// documents it. Views of arrays that somebody else keeps alive.
struct SamplingTable {
  int64_t num_rows;            // R users
  const int64_t* users;        // (R)
  const int64_t* offsets;      // (R + 1) of the rows' events
  const int64_t* items;        // (E) events, oldest first
  const int64_t* seen_starts;  // (R + 1) of the rows' distinct items
  const int64_t*
      unseen_below;  // (S) for each distinct item, ascending: the weight of unseen items below it
  const int64_t* seen_through;   // (S) the weight of the row's seen items up to and with it
  const int64_t* unseen_weight;  // (R) the weight of all items the row has not seen
  const int64_t*
      weight_through;  // (I + 1) the weight of items 0 to i; null where every item weighs 1
  int64_t item_num;    // I
};

struct DrawSettings {
  std::array<uint64_t, 2> key;  // of Philox
  int64_t batch_size;           // B
  int64_t max_len;              // newest events taken of each user
  int64_t num_negatives;        // K
  double window_prob;           // of a window anywhere in a longer history
};

// A batch of B sequences with N events in all. Vectors keep their memory from one draw to the next.
struct Batch {
  std::vector<int64_t> users;      // (B)
  std::vector<int32_t> offsets;    // (B + 1)
  std::vector<int64_t> columns;    // (N) place of each event in the left-padded layout
  std::vector<int64_t> items;      // (N)
  std::vector<int64_t> positives;  // (N) the event after each
  std::vector<int64_t> negatives;  // (N, K) items not in the user's history
  int64_t longest = 0;
};

// Draws batch `index`: a pure function of its arguments.
void draw(const SamplingTable& table, const DrawSettings& settings, uint64_t index, Batch& batch);

}  // namespace ssept::sampler
