// Drawing one training batch. Plain C++: no torch, no Python.
#pragma once
#include <cstdint>
#include <vector>

#include "sampler/numbering.h"
#include "sampler/philox.h"
#include "sampler/sse.h"
#include "sampler/unseen.h"

namespace ssept::sampler {

// The users who can be drawn; built by `ssept_ext/sampling/draw.py`. Views of arrays that
// somebody else keeps alive.
struct SamplingTable {
  int64_t num_rows;        // R users
  const int64_t* users;    // (R)
  const int64_t* offsets;  // (R + 1) of the rows' events
  const int64_t* items;    // (E) events, oldest first
  const int64_t* times;    // (E) when each was, or null
  UnseenItems unseen;      // of the same rows
  int64_t largest_user;
};

// What has K negatives of its own.
enum class NegativesPer { kEvent, kSequence, kBatch };

struct DrawSettings {
  PhiloxKey key;
  int64_t batch_size;     // B
  int64_t max_len;        // newest events taken of each user
  int64_t num_negatives;  // K
  double window_prob;     // of a window anywhere in a longer history
  SseSettings sse;
  bool numbered;  // whether `Batch::numbers` is wanted
  NegativesPer negatives_per;

  // Throws std::invalid_argument where a batch could be too large for its 32-bit offsets, or for
  // any memory.
  void check() const;
};

// A batch of B sequences with N events in all. Vectors keep their memory from one draw to the next.
struct Batch {
  std::vector<int64_t> users;                // (B)
  std::vector<int32_t> offsets;              // (B + 1)
  std::vector<int64_t> columns;              // (N) place of each event in the left-padded layout
  std::vector<int64_t> items;                // (N)
  std::vector<int64_t> positives;            // (N) the event after each, unless SSE replaced it
  std::vector<int64_t> times, target_times;  // (N) of items and positives, if the table has times
  std::vector<int64_t> negatives;  // (N, K), (B, K) or (1, K) items not in the user's history
  int64_t longest = 0;
  RowNumbers numbers;  // empty unless wanted
};

// Draws batch `index`: a pure function of its arguments.
void draw(const SamplingTable& table, const DrawSettings& settings, uint64_t index, Batch& batch);

}  // namespace ssept::sampler
