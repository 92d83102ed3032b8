// Dropout masks in a kernel: the bits that reference.py defines and the CPU kernels compute.
#pragma once
#include "common/dropout.h"
#include "cuda/launch.cuh"

namespace ssept::cuda {

// Whether each of 4 neighbouring columns is kept.
struct KeepFour {
  bool keep[4];
};

// The key and site of one forward pass, read from the seed tensor once a thread. Philox4x32-10
// (Salmon et al., SC 2011): one call decides on the columns 4 q to 4 q + 3 of a row.
class DropoutMask {
 public:
  __device__ __forceinline__ explicit DropoutMask(const DropoutSite& site)
      : dropout_(site),
        key0_(site.seed == nullptr ? 0 : static_cast<uint32_t>(*site.seed)),
        key1_(site.seed == nullptr
                  ? 0
                  : static_cast<uint32_t>(static_cast<uint64_t>(*site.seed) >> 32)),
        threshold_(site.threshold),
        site_(site.site) {}

  // Drops of a quad, which begins with this column, and scales what is kept.
  template <class A>
  __device__ __forceinline__ void apply(A (&x)[4], int64_t row, int64_t column) const {
    if (dropout_.seed == nullptr) return;
    const KeepFour kept = quad(row, static_cast<uint32_t>(column / 4));
#pragma unroll
    for (int j = 0; j < 4; ++j) x[j] = kept.keep[j] ? static_cast<A>(dropout_.scale) * x[j] : A(0);
  }

  // Not to be asked where nothing is dropped.
  __device__ __forceinline__ KeepFour quad(int64_t row, uint32_t q) const {
    uint32_t w0 = q, w1 = static_cast<uint32_t>(row),
             w2 = static_cast<uint32_t>(static_cast<uint64_t>(row) >> 32), w3 = site_;
    uint32_t key0 = key0_, key1 = key1_;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
      const uint64_t p0 = static_cast<uint64_t>(w0) * 0xD2511F53u;
      const uint64_t p1 = static_cast<uint64_t>(w2) * 0xCD9E8D57u;
      w0 = static_cast<uint32_t>(p1 >> 32) ^ w1 ^ key0;
      w1 = static_cast<uint32_t>(p1);
      w2 = static_cast<uint32_t>(p0 >> 32) ^ w3 ^ key1;
      w3 = static_cast<uint32_t>(p0);
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    return {{w0 >= threshold_, w1 >= threshold_, w2 >= threshold_, w3 >= threshold_}};
  }

 private:
  const DropoutSite& dropout_;  // in the kernel's parameters, so it needs no registers
  uint32_t key0_, key1_, threshold_, site_;
};

}  // namespace ssept::cuda
