// Stochastic shared embeddings: replacing ids at random. Plain C++: no torch, no Python.
#pragma once
#include <cstdint>

#include "sampler/philox.h"

namespace ssept::sampler {

// What is replaced, and by what: see `ssept_ext/data/sse.py`. A probability p is round(p * 2**32).
struct SseSettings {
  uint64_t user_prob = 0, item_prob = 0, target_prob = 0;
  bool joint = false;
  int64_t user_num = 0, item_num = 0;  // the largest ids to draw

  bool is_active() const { return user_prob > 0 || item_prob > 0 || target_prob > 0; }
};

// The ids of B sequences, which may be a part of a batch.
struct SequenceIds {
  int64_t num_sequences;   // B
  const int32_t* offsets;  // (B + 1) of the sequences' tokens
  int64_t* users;          // (B)
  int64_t* items;          // (offsets[B])
  int64_t* positives;      // (offsets[B])
  int64_t first_sequence;  // number of the first one in the whole batch
  int64_t first_token;
};

// Replaces ids of batch `index` in place, as a pure function of the arguments.
void replace_ids(const SseSettings& sse, PhiloxKey key, uint64_t index, const SequenceIds& ids);

}  // namespace ssept::sampler
