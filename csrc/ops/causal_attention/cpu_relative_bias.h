// The relative bias of `causal_attention` on the CPU, for a row of scores.
#pragma once
#include <bit>

#include "ops/causal_attention/cpu_units.h"

namespace ssept::cpu::attention {

// The buckets of the times between a query and its first keys, in a tile.
using TimeBuckets = int32_t[kTile];

SSEPT_INLINE void find_time_buckets(int64_t query_time, const int64_t* key_times, int64_t keys,
                                    TimeBuckets& buckets) {
#pragma omp simd
  for (int64_t j = 0; j < keys; ++j) {
    // Unsigned, because the difference of any two times must be defined.
    const int64_t between = static_cast<int64_t>(static_cast<uint64_t>(query_time) -
                                                 static_cast<uint64_t>(key_times[j]));
    const float time = static_cast<float>(between < 1 ? 1 : between);
    buckets[j] = (std::bit_cast<int32_t>(time) >> 22) - 2 * 127;
  }
}

// Adds its bias to each score of a query and the keys that it sees, from `first_key` on.
template <class A>
SSEPT_INLINE void add_bias(const Head<A>& x, int64_t query, int64_t first_key, int64_t visible,
                           A* scores, TimeBuckets& buckets) {
  if (x.bias.position) {
    const A* of_first_key = x.bias.position + x.visible(query, first_key) - 1;
    for (int64_t j = 0; j < visible; ++j) scores[j] += of_first_key[-j];
  }
  if (x.bias.time) {
    find_time_buckets(x.bias.query_times[query], x.bias.key_times + first_key, visible, buckets);
    for (int64_t j = 0; j < visible; ++j) scores[j] += x.bias.time[buckets[j]];
  }
}

// Adds the gradients of such scores to those of the bias: (num_positions), then (kTimeBuckets).
template <class A>
SSEPT_INLINE void add_bias_gradient(const Head<A>& x, int64_t query, int64_t first_key,
                                    int64_t visible, const A* grad_scores,
                                    const TimeBuckets& buckets, A* sums) {
  if (x.bias.position) {
    A* of_first_key = sums + x.visible(query, first_key) - 1;
    for (int64_t j = 0; j < visible; ++j) of_first_key[-j] += grad_scores[j];
  }
  if (x.bias.time)
    for (int64_t j = 0; j < visible; ++j) sums[x.bias.num_positions + buckets[j]] += grad_scores[j];
}

}  // namespace ssept::cpu::attention
