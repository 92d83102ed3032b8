// The items that queries have seen.
#pragma once
#include <bit>
#include <vector>

#include "cpu/parallel.h"
#include "ops/top_k/params.h"

namespace ssept::cpu {

// Ids above 0, by open addressing.
class IdSet {
 public:
  // Has room for `count` ids.
  explicit IdSet(int64_t count)
      : bits_(std::bit_width(static_cast<uint64_t>(2 * count))), slots_(int64_t{1} << bits_) {}

  // Whether the id is new.
  bool add(int64_t id) {
    int64_t& slot = slots_[slot_of(id)];
    if (slot == id) return false;
    slot = id;
    return true;
  }
  bool has(int64_t id) const { return slots_[slot_of(id)] == id; }

 private:
  // Where the id is, or can be put.
  uint64_t slot_of(int64_t id) const {
    if (bits_ == 0) return 0;
    uint64_t at = static_cast<uint64_t>(id) * 0x9E3779B97F4A7C15u >> (64 - bits_);
    while (slots_[at] != 0 && slots_[at] != id) at = (at + 1) & (slots_.size() - 1);
    return at;
  }

  int bits_;
  std::vector<int64_t> slots_;
};

struct Ids {
  const int64_t* data;
  int64_t count;
};

template <class T>
Ids seen_by(const Ranking<T>& in, int64_t query) {
  if (!in.seen_offsets) return {nullptr, 0};
  const int64_t from = in.seen_offsets[query];
  return {in.seen_items + from, in.seen_offsets[query + 1] - from};
}

template <class T>
void check_seen(const Ranking<T>& in) {
  if (!in.seen_offsets) return;
  bool rising = in.seen_offsets[0] == 0;
  for (int64_t q = 0; q < in.num_queries; ++q)
    rising &= in.seen_offsets[q] <= in.seen_offsets[q + 1];
  const int64_t end = in.seen_offsets[in.num_queries];
  check(rising && end <= in.num_seen, "seen_offsets must rise from 0 to at most ", in.num_seen,
        ", got an end of ", end);
  check_ids("seen_items", in.seen_items, in.num_seen, in.table.rows);
}

}  // namespace ssept::cpu
