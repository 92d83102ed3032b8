// A dropout site: with a seed, it decides which elements are kept, the same bits on every device
// and in reference.py, which defines them.
#pragma once
#include <cstdint>

namespace ssept {

// One dropout site of one forward pass.
struct DropoutSite {
  uint32_t threshold;  // an element whose word is below is dropped; 0 drops none
  uint32_t site;
  double scale;  // of the elements kept, 1 / (1 - p)

  DropoutSite(double p, int64_t site)
      : threshold(static_cast<uint32_t>(p * 4294967296.0)),
        site(static_cast<uint32_t>(site)),
        scale(1 / (1 - p)) {}
};

}  // namespace ssept
