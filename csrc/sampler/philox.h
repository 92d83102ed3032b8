// Random words that NumPy draws too. Plain C++: no torch, no Python.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>

namespace ssept::sampler {

using PhiloxKey = std::array<uint64_t, 2>;

// The words of numpy.random.Philox(key, counter=[0, index, domain, 0]): word j is word j % 4 of
// Philox4x64-10 at counter (j / 4 + 1, index, domain, 0).
class PhiloxStream {
 public:
  explicit PhiloxStream(PhiloxKey key, uint64_t index = 0, uint64_t domain = 0)
      : key_(key), index_(index), domain_(domain) {}

  // Goes on with word `position`.
  void seek(uint64_t position) {
    counter_ = position / 4;
    left_ = 0;
    std::array<uint64_t, 4> skipped;
    fill(skipped.data(), position % 4);
  }

  // Whole blocks at once, as the processor then works on several: a word takes a quarter of the
  // time of one asked for alone.
  void fill(uint64_t* words, int64_t count) {
    while (count > 0 && left_ > 0) {
      *words++ = block_[4 - left_--];
      --count;
    }
    for (; count >= 4; count -= 4, words += 4) {
      const Block block = next_block();
      std::copy(block.begin(), block.end(), words);
    }
    if (count > 0) {
      block_ = next_block();
      std::copy_n(block_.begin(), count, words);
      left_ = 4 - count;
    }
  }

 private:
  using Block = std::array<uint64_t, 4>;

  Block next_block() {
    Block w{++counter_, index_, domain_, 0};
    PhiloxKey key = key_;
    for (int round = 0; round < 10; ++round) {
      const auto p0 = static_cast<unsigned __int128>(w[0]) * 0xD2E7470EE14C6C93u;
      const auto p1 = static_cast<unsigned __int128>(w[2]) * 0xCA5A826395121157u;
      w = {static_cast<uint64_t>(p1 >> 64) ^ w[1] ^ key[0], static_cast<uint64_t>(p1),
           static_cast<uint64_t>(p0 >> 64) ^ w[3] ^ key[1], static_cast<uint64_t>(p0)};
      key[0] += 0x9E3779B97F4A7C15u;
      key[1] += 0xBB67AE8584CAA73Bu;
    }
    return w;
  }

  PhiloxKey key_;
  uint64_t index_, domain_, counter_ = 0;
  Block block_{};
  int64_t left_ = 0;  // words of `block_` not handed out yet
};

// The double in [0, 1) that numpy.random.Generator.random() makes of a word: its upper 53 bits.
inline double uniform(uint64_t word) {
  return static_cast<double>(static_cast<int64_t>(word >> 11)) * 0x1p-53;
}

}  // namespace ssept::sampler
