#include "sampler/draw.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>

namespace ssept::sampler {
namespace {

int64_t below(int64_t limit, uint64_t word) {
  return static_cast<int64_t>(uniform(word) * static_cast<double>(limit));
}

// Sets of negatives of `size` sequences with `events` events.
int64_t num_sets(NegativesPer per, int64_t size, int64_t events) {
  return per == NegativesPer::kEvent ? events : per == NegativesPer::kSequence ? size : 1;
}

// Copies, of a table's values of events, `length` from the first one and as many from the second.
void take(const int64_t* first, int64_t length, int64_t* of_events, int64_t* of_following) {
  std::memcpy(of_events, first, length * sizeof(int64_t));
  std::memcpy(of_following, first + 1, length * sizeof(int64_t));
}

}  // namespace

void DrawSettings::check() const {
  int64_t events = 0, negatives = 0;
  const bool fits = batch_size > 0 && max_len > 0 && num_negatives > 0 &&
                    !__builtin_mul_overflow(batch_size, max_len, &events) &&
                    events <= std::numeric_limits<int32_t>::max() &&
                    !__builtin_mul_overflow(num_sets(negatives_per, batch_size, events),
                                            num_negatives, &negatives) &&
                    negatives <= std::numeric_limits<int32_t>::max();
  if (!fits)
    throw std::invalid_argument(
        "batch_size * max_len * num_negatives must be in 1..2147483647, got " +
        std::to_string(batch_size) + " * " + std::to_string(max_len) + " * " +
        std::to_string(num_negatives));
}

void draw(const SamplingTable& table, const DrawSettings& settings, uint64_t index, Batch& batch) {
  PhiloxStream stream(settings.key, index);
  const int64_t size = settings.batch_size;
  std::vector<int64_t> rows(size), ends(size);
  std::vector<uint64_t> words(size);
  batch.users.resize(size);
  batch.offsets.assign(1, 0);
  batch.longest = 0;
  stream.fill(words.data(), size);
  for (int64_t b = 0; b < size; ++b) {
    const int64_t row = below(table.num_rows, words[b]);
    rows[b] = row;
    batch.users[b] = table.users[row];
    ends[b] = table.offsets[row + 1] - 1;  // the last event is a target only
    const int64_t length = std::min(ends[b] - table.offsets[row], settings.max_len);
    batch.longest = std::max(batch.longest, length);
    batch.offsets.push_back(batch.offsets.back() + static_cast<int32_t>(length));
  }
  if (settings.window_prob > 0) {
    words.resize(2 * size);
    stream.fill(words.data(), 2 * size);
    for (int64_t b = 0; b < size; ++b) {
      if (uniform(words[b]) >= settings.window_prob) continue;
      const int64_t length = batch.offsets[b + 1] - batch.offsets[b];
      const int64_t spare = ends[b] - table.offsets[rows[b]] - length;
      ends[b] -= below(spare + 1, words[size + b]);
    }
  }
  const int64_t num_events = batch.offsets.back();
  const int64_t num_negatives =
      settings.num_negatives * num_sets(settings.negatives_per, size, num_events);
  batch.columns.resize(num_events);
  batch.items.resize(num_events);
  batch.positives.resize(num_events);
  batch.times.resize(table.times != nullptr ? num_events : 0);
  batch.target_times.resize(batch.times.size());
  batch.negatives.resize(num_negatives);

  // Each random word gives way to the negative made of it.
  auto* negative_words = reinterpret_cast<uint64_t*>(batch.negatives.data());
  stream.fill(negative_words, num_negatives);
  for (int64_t b = 0; b < size; ++b) {
    if (b + 1 < size) prefetch(table.unseen, rows[b + 1]);
    const int64_t first = batch.offsets[b];
    const int64_t length = batch.offsets[b + 1] - first;
    const int64_t event = ends[b] - length;
    take(table.items + event, length, batch.items.data() + first, batch.positives.data() + first);
    if (table.times != nullptr)
      take(table.times + event, length, batch.times.data() + first,
           batch.target_times.data() + first);
    std::iota(&batch.columns[first], &batch.columns[first] + length, settings.max_len - length);
    if (settings.negatives_per == NegativesPer::kBatch && b > 0) continue;
    const bool of_events = settings.negatives_per == NegativesPer::kEvent;
    const int64_t first_negative = (of_events ? first : b) * settings.num_negatives;
    draw_unseen(table.unseen, rows[b], negative_words + first_negative,
                (of_events ? length : 1) * settings.num_negatives,
                batch.negatives.data() + first_negative);
  }
  if (settings.sse.is_active())
    replace_ids(settings.sse, settings.key, index,
                {size, batch.offsets.data(), batch.users.data(), batch.items.data(),
                 batch.positives.data(), 0, 0});
  if (settings.numbered)
    batch.numbers.assign(batch.users, batch.items, batch.positives, batch.negatives,
                         std::max(table.unseen.item_num, settings.sse.item_num),
                         std::max(table.largest_user, settings.sse.user_num));
}

}  // namespace ssept::sampler
