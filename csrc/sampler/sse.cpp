#include "sampler/sse.h"

#include <vector>

namespace ssept::sampler {
namespace {

// Domain 0 of the batch's random words is that of its users, windows and negatives.
enum Domain : uint64_t { kUsers = 1, kItems = 2, kTargets = 3 };

std::vector<uint64_t> words(PhiloxKey key, uint64_t index, Domain domain, int64_t first,
                            int64_t count) {
  std::vector<uint64_t> words(count);
  PhiloxStream stream(key, index, domain);
  stream.seek(first);
  stream.fill(words.data(), count);
  return words;
}

// The upper half of a word decides, the lower half draws.
bool is_hit(uint64_t word, uint64_t prob) { return word >> 32 < prob; }

int64_t drawn(uint64_t word, int64_t largest) {
  return 1 + static_cast<int64_t>((word & 0xFFFFFFFFu) * static_cast<uint64_t>(largest) >> 32);
}

void replace_if_there(int64_t& id, int64_t by) {
  if (id != 0) id = by;
}

}  // namespace

void replace_ids(const SseSettings& sse, PhiloxKey key, uint64_t index, const SequenceIds& ids) {
  if (sse.user_prob > 0) {
    const auto of_users = words(key, index, kUsers, ids.first_sequence, ids.num_sequences);
    for (int64_t b = 0; b < ids.num_sequences; ++b)
      if (is_hit(of_users[b], sse.user_prob))
        replace_if_there(ids.users[b], drawn(of_users[b], sse.user_num));
  }
  if (sse.item_prob == 0 && sse.target_prob == 0) return;
  const int64_t num_tokens = ids.offsets[ids.num_sequences];
  std::vector<uint64_t> of_items, of_targets;
  if (sse.item_prob > 0) of_items = words(key, index, kItems, ids.first_token, num_tokens);
  if (sse.joint || sse.target_prob > 0)
    of_targets = words(key, index, kTargets, ids.first_token, num_tokens);
  for (int64_t b = 0; b < ids.num_sequences; ++b) {
    bool was_hit = true;  // the event before; a sequence's first has none
    for (int64_t n = ids.offsets[b]; n < ids.offsets[b + 1]; ++n) {
      const bool hit = sse.item_prob > 0 && is_hit(of_items[n], sse.item_prob);
      if (hit) {
        ids.items[n] = drawn(of_items[n], sse.item_num);
        if (sse.joint && !was_hit) replace_if_there(ids.positives[n - 1], ids.items[n]);
      }
      if (sse.joint ? hit : sse.target_prob > 0 && is_hit(of_targets[n], sse.target_prob))
        replace_if_there(ids.positives[n], drawn(of_targets[n], sse.item_num));
      was_hit = hit;
    }
  }
}

}  // namespace ssept::sampler
