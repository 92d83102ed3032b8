// One dropout of one forward pass: with a seed, it decides which elements are kept, the same bits
// on every device and in reference.py, which defines them.
#pragma once
#include <cstdint>

namespace ssept {

struct DropoutSite {
  const int64_t* seed;  // (1), or null where nothing is dropped
  uint32_t threshold;   // an element whose word is below is dropped
  uint32_t site;
  double scale;  // of the elements kept, 1 / (1 - p)
};

}  // namespace ssept
