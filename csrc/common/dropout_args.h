// The dropout arguments of an op, checked.
#pragma once
#include "common/checks.h"
#include "common/dropout.h"

namespace ssept {

// Valid while `seed` lives. On the CPU it may be read at once; a kernel on another device reads it
// there.
inline DropoutSite check_dropout(double p, const std::optional<Tensor>& seed, int64_t site) {
  check(p >= 0 && p < 1, "dropout_p must be in [0, 1), got ", p);
  check(site >= 0 && site <= UINT32_MAX, "site must be in 0..", UINT32_MAX, ", got ", site);
  if (p > 0) {
    check(seed.has_value() && seed->scalar_type() == ScalarType::Long && seed->numel() == 1,
          "seed must be an int64 tensor of one element where dropout_p > 0");
  }
  return {p > 0 ? data<int64_t>(*seed) : nullptr, static_cast<uint32_t>(p * 4294967296.0),
          static_cast<uint32_t>(site), 1 / (1 - p)};
}

}  // namespace ssept
