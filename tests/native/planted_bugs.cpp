// What the sanitizers must find, each in the way that the extension would commit it; called with 1.
#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <thread>

#define PLANTED extern "C" [[gnu::visibility("default")]]

PLANTED int64_t read_past_the_end(int64_t i) {
  const auto values = std::make_unique<int64_t[]>(4);
  return values[3 + i];
}

PLANTED int64_t overflow(int64_t i) { return std::numeric_limits<int64_t>::max() + i; }

PLANTED int64_t race_of_threads(int64_t) {
  int64_t count = 0;
  std::thread other([&] { ++count; });
  ++count;
  other.join();
  return count;
}

PLANTED int64_t race_in_parallel_for(int64_t) {
  int64_t count = 0;
  torch::stable::parallel_for(0, 2, 1, [&](int64_t begin, int64_t end) { count += end - begin; });
  return count;
}

// Correct: threads read what was written before them, and what they write is read after them.
PLANTED int64_t parallel_for(int64_t) {
  int64_t values[] = {1, 2};
  torch::stable::parallel_for(0, 2, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) values[i] += 1;
  });
  return values[0] + values[1];
}
