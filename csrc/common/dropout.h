// Dropout as a function: which elements a dropout site keeps, the same bits on every device and in
// reference.py.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define SSEPT_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SSEPT_HOST_DEVICE [[gnu::always_inline]] inline
#endif

namespace ssept {

// Philox4x32-10 (Salmon et al., SC 2011). word[] is the counter on entry and the result on return.
SSEPT_HOST_DEVICE void philox4x32_10(uint32_t word[4], uint32_t key0, uint32_t key1) {
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(word[0]) * 0xD2511F53u;
    const uint64_t p1 = static_cast<uint64_t>(word[2]) * 0xCD9E8D57u;
    word[0] = static_cast<uint32_t>(p1 >> 32) ^ word[1] ^ key0;
    word[1] = static_cast<uint32_t>(p1);
    word[2] = static_cast<uint32_t>(p0 >> 32) ^ word[3] ^ key1;
    word[3] = static_cast<uint32_t>(p0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

// One dropout site of one forward pass.
struct DropoutSite {
  uint32_t threshold;  // an element whose word is below is dropped; 0 drops none
  uint32_t site;
  double scale;  // of the elements kept, 1 / (1 - p)

  DropoutSite(double p, int64_t site)
      : threshold(static_cast<uint32_t>(p * 4294967296.0)),
        site(static_cast<uint32_t>(site)),
        scale(1 / (1 - p)) {}

  // The words of columns 4 * quad to 4 * quad + 3 of a row.
  SSEPT_HOST_DEVICE void words(int64_t seed, int64_t row, uint32_t quad, uint32_t word[4]) const {
    word[0] = quad;
    word[1] = static_cast<uint32_t>(row);
    word[2] = static_cast<uint32_t>(static_cast<uint64_t>(row) >> 32);
    word[3] = site;
    philox4x32_10(word, static_cast<uint32_t>(seed),
                  static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32));
  }
};

}  // namespace ssept
