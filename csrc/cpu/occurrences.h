// Where each id occurs, for summing gradients id by id: in a fixed order, and by any number of
// threads.
#pragma once
#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace ssept::cpu {

// Entries e with ids[e] == i are entries[start[i]] to entries[start[i + 1] - 1], in rising order.
// Ids must be below `rows`; those below `first` are left out.
struct Occurrences {
  std::vector<int64_t> start, entries;

  Occurrences() = default;
  Occurrences(const int64_t* ids, int64_t count, int64_t rows, int64_t first) : start(rows + 1, 0) {
    for (int64_t e = 0; e < count; ++e)
      if (ids[e] >= first) ++start[ids[e]];
    int64_t sum = 0;
    for (auto& s : start) sum += std::exchange(s, sum);
    entries.resize(sum);
    for (int64_t e = 0; e < count; ++e)
      if (ids[e] >= first) entries[start[ids[e]]++] = e;
    // Each id's start now lies where the next id's belongs.
    std::copy_backward(start.begin(), start.end() - 1, start.end());
    start.front() = 0;
  }
};

}  // namespace ssept::cpu
