#include "sampler/draw.h"

#include <algorithm>
#include <cstring>

namespace ssept::sampler {
namespace {

// Random doubles in [0, 1): word j % 4 of Philox4x64-10 at counter (j / 4 + 1, index, 0, 0), its
// upper 53 bits. These are the numbers of numpy.random.Generator(numpy.random.Philox(key,
// counter=[0, index, 0, 0])).random().
class Uniform {
 public:
  Uniform(std::array<uint64_t, 2> key, uint64_t index) : key_(key), index_(index) {}

  double operator()() {
    if (used_ == 4) {
      refill();
      used_ = 0;
    }
    return static_cast<double>(words_[used_++] >> 11) * 0x1p-53;
  }

 private:
  void refill() {
    words_ = {++block_, index_, 0, 0};
    std::array<uint64_t, 2> key = key_;
    for (int round = 0; round < 10; ++round) {
      const auto p0 = static_cast<unsigned __int128>(words_[0]) * 0xD2E7470EE14C6C93u;
      const auto p1 = static_cast<unsigned __int128>(words_[2]) * 0xCA5A826395121157u;
      words_ = {static_cast<uint64_t>(p1 >> 64) ^ words_[1] ^ key[0], static_cast<uint64_t>(p1),
                static_cast<uint64_t>(p0 >> 64) ^ words_[3] ^ key[1], static_cast<uint64_t>(p0)};
      key[0] += 0x9E3779B97F4A7C15u;
      key[1] += 0xBB67AE8584CAA73Bu;
    }
  }

  std::array<uint64_t, 2> key_;
  uint64_t index_, block_ = 0;
  std::array<uint64_t, 4> words_{};
  int used_ = 4;
};

// How many of the ascending values are at most x; branch-free, as x is random.
int64_t count_at_most(const int64_t* values, int64_t count, int64_t x) {
  const int64_t* first = values;
  while (count > 1) {
    const int64_t half = count / 2;
    first += first[half - 1] <= x ? half : 0;
    count -= half;
  }
  return (first - values) + (count == 1 && *first <= x);
}

}  // namespace

void draw(const SamplingTable& table, const DrawSettings& settings, uint64_t index, Batch& batch) {
  Uniform uniform(settings.key, index);
  const int64_t size = settings.batch_size;
  std::vector<int64_t> rows(size), ends(size);
  batch.users.resize(size);
  batch.offsets.assign(1, 0);
  batch.longest = 0;
  for (int64_t b = 0; b < size; ++b) {
    const auto row = static_cast<int64_t>(uniform() * static_cast<double>(table.num_rows));
    rows[b] = row;
    batch.users[b] = table.users[row];
    ends[b] = table.offsets[row + 1] - 1;  // the last event is a target only
    const int64_t length = std::min(ends[b] - table.offsets[row], settings.max_len);
    batch.longest = std::max(batch.longest, length);
    batch.offsets.push_back(batch.offsets.back() + static_cast<int32_t>(length));
  }
  if (settings.window_prob > 0) {
    std::vector<bool> moves(size);
    for (int64_t b = 0; b < size; ++b) moves[b] = uniform() < settings.window_prob;
    for (int64_t b = 0; b < size; ++b) {
      const int64_t length = batch.offsets[b + 1] - batch.offsets[b];
      const int64_t spare = ends[b] - table.offsets[rows[b]] - length;
      const auto back = static_cast<int64_t>(uniform() * static_cast<double>(spare + 1));
      if (moves[b]) ends[b] -= back;
    }
  }
  const int64_t num_events = batch.offsets.back();
  batch.columns.resize(num_events);
  batch.items.resize(num_events);
  batch.positives.resize(num_events);
  batch.negatives.resize(num_events * settings.num_negatives);

  int64_t* negative = batch.negatives.data();
  for (int64_t b = 0; b < size; ++b) {
    const int64_t row = rows[b], first = batch.offsets[b];
    const int64_t length = batch.offsets[b + 1] - first;
    const int64_t* events = table.items + ends[b] - length;
    std::memcpy(batch.items.data() + first, events, length * sizeof(int64_t));
    std::memcpy(batch.positives.data() + first, events + 1, length * sizeof(int64_t));
    for (int64_t i = 0; i < length; ++i) batch.columns[first + i] = settings.max_len - length + i;

    // A point of the unseen weight, moved up past the seen items below it, is a point of all
    // weight, and that lies in an unseen item: no item is ever tried and rejected.
    const int64_t* unseen_below = table.unseen_below + table.seen_starts[row];
    const int64_t* seen_through = table.seen_through + table.seen_starts[row];
    const int64_t num_seen = table.seen_starts[row + 1] - table.seen_starts[row];
    const auto unseen = static_cast<double>(table.unseen_weight[row]);
    for (int64_t i = 0; i < length * settings.num_negatives; ++i) {
      const auto point = static_cast<int64_t>(uniform() * unseen);
      const int64_t seen = count_at_most(unseen_below, num_seen, point);
      const int64_t moved = point + (seen > 0 ? seen_through[seen - 1] : 0);
      *negative++ = table.weight_through
                        ? count_at_most(table.weight_through, table.item_num + 1, moved)
                        : 1 + moved;
    }
  }
}

}  // namespace ssept::sampler
