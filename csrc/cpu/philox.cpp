#include "cpu/philox.h"

#include "cpu/simd.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define SSEPT_PHILOX_AVX512
#endif

namespace ssept::cpu {
namespace {

constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;

// LANES counters at once: more hide more of the latency, but the last ones may be wasted.
constexpr int64_t kLanes = 32;
static_assert(4 * kLanes <= kPhiloxSlack);

// Row and quad of each of the kLanes counters that follow one another from the block's first.
struct Counters {
  alignas(64) int64_t row[kLanes], quad[kLanes];

  explicit Counters(const PhiloxBlock& block) {
    int64_t r = block.first_row, q = 0;
    for (int64_t i = 0; i < kLanes; ++i) {
      row[i] = r;
      quad[i] = block.first_quad + q;
      if (++q == block.quads) q = 0, r += block.row_step;
    }
  }
};

void philox_words_baseline(uint32_t* words, const PhiloxBlock& block, uint32_t site, int64_t seed) {
  Counters counters(block);
  const int64_t quads_ahead = kLanes % block.quads;
  const int64_t rows_ahead = kLanes / block.quads * block.row_step;
  const int64_t last_quad = block.first_quad + block.quads;
  for (int64_t done = 0; done < block.words(); done += 4 * kLanes) {
    uint32_t word[4][kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      word[0][i] = static_cast<uint32_t>(counters.quad[i]);
      word[1][i] = static_cast<uint32_t>(counters.row[i]);
      word[2][i] = static_cast<uint32_t>(static_cast<uint64_t>(counters.row[i]) >> 32);
      word[3][i] = site;
    }
    auto key0 = static_cast<uint32_t>(seed);
    auto key1 = static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32);
    for (int round = 0; round < 10; ++round) {
#pragma omp simd
      for (int64_t i = 0; i < kLanes; ++i) {
        const uint64_t p0 = static_cast<uint64_t>(word[0][i]) * kMultiplier0;
        const uint64_t p1 = static_cast<uint64_t>(word[2][i]) * kMultiplier1;
        word[0][i] = static_cast<uint32_t>(p1 >> 32) ^ word[1][i] ^ key0;
        word[1][i] = static_cast<uint32_t>(p1);
        word[2][i] = static_cast<uint32_t>(p0 >> 32) ^ word[3][i] ^ key1;
        word[3][i] = static_cast<uint32_t>(p0);
      }
      key0 += kWeyl0;
      key1 += kWeyl1;
    }
    for (int64_t i = 0; i < kLanes; ++i)
      for (int64_t w = 0; w < 4; ++w) words[done + 4 * i + w] = word[w][i];
    for (int64_t i = 0; i < kLanes; ++i) {
      const bool wraps = counters.quad[i] + quads_ahead >= last_quad;
      counters.quad[i] += quads_ahead - (wraps ? block.quads : 0);
      counters.row[i] += rows_ahead + (wraps ? block.row_step : 0);
    }
  }
}

#ifdef SSEPT_PHILOX_AVX512
// By hand, as compilers do not find the instruction that multiplies 32 by 32 to 64 bits. A word is
// the lower half of a lane; what stands above it is not looked at.
[[gnu::target("avx512f")]] void philox_words_avx512(uint32_t* words, const PhiloxBlock& block,
                                                    uint32_t site, int64_t seed) {
  constexpr int kVectors = kLanes / 8;
  const Counters counters(block);
  __m512i row[kVectors], quad[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    row[v] = _mm512_load_si512(counters.row + 8 * v);
    quad[v] = _mm512_load_si512(counters.quad + 8 * v);
  }
  const __m512i quads_ahead = _mm512_set1_epi64(kLanes % block.quads);
  const __m512i rows_ahead = _mm512_set1_epi64(kLanes / block.quads * block.row_step);
  const __m512i last_quad = _mm512_set1_epi64(block.first_quad + block.quads);
  const __m512i quads = _mm512_set1_epi64(block.quads), step = _mm512_set1_epi64(block.row_step);
  const __m512i multiplier0 = _mm512_set1_epi64(kMultiplier0);
  const __m512i multiplier1 = _mm512_set1_epi64(kMultiplier1);
  const __m512i lower = _mm512_set1_epi64(0xFFFFFFFF);
  const __m512i even_lanes = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
  const __m512i odd_lanes = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);

  for (int64_t done = 0; done < block.words(); done += 4 * kLanes) {
    __m512i word[4][kVectors];
    for (int v = 0; v < kVectors; ++v) {
      word[0][v] = quad[v];
      word[1][v] = row[v];
      word[2][v] = _mm512_srli_epi64(row[v], 32);
      word[3][v] = _mm512_set1_epi64(site);
    }
    auto key0 = static_cast<uint32_t>(seed);
    auto key1 = static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      const __m512i k0 = _mm512_set1_epi64(key0), k1 = _mm512_set1_epi64(key1);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const __m512i p0 = _mm512_mul_epu32(word[0][v], multiplier0);
        const __m512i p1 = _mm512_mul_epu32(word[2][v], multiplier1);
        constexpr int kXor3 = 0x96;
        word[0][v] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p1, 32), word[1][v], k0, kXor3);
        word[1][v] = p1;
        word[2][v] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p0, 32), word[3][v], k1, kXor3);
        word[3][v] = p0;
      }
      key0 += kWeyl0;
      key1 += kWeyl1;
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const __m512i first =
          _mm512_or_si512(_mm512_and_si512(word[0][v], lower), _mm512_slli_epi64(word[1][v], 32));
      const __m512i second =
          _mm512_or_si512(_mm512_and_si512(word[2][v], lower), _mm512_slli_epi64(word[3][v], 32));
      uint32_t* to = words + done + 32 * v;
      _mm512_storeu_si512(to, _mm512_permutex2var_epi64(first, even_lanes, second));
      _mm512_storeu_si512(to + 16, _mm512_permutex2var_epi64(first, odd_lanes, second));
      quad[v] = _mm512_add_epi64(quad[v], quads_ahead);
      row[v] = _mm512_add_epi64(row[v], rows_ahead);
      const __mmask8 wraps = _mm512_cmpge_epi64_mask(quad[v], last_quad);
      quad[v] = _mm512_mask_sub_epi64(quad[v], wraps, quad[v], quads);
      row[v] = _mm512_mask_add_epi64(row[v], wraps, row[v], step);
    }
  }
}
#endif

}  // namespace

void philox_words(uint32_t* words, const PhiloxBlock& block, uint32_t site, int64_t seed) {
#ifdef SSEPT_PHILOX_AVX512
  if (simd_level() >= SimdLevel::kAvx512) return philox_words_avx512(words, block, site, seed);
#endif
  philox_words_baseline(words, block, site, seed);
}

}  // namespace ssept::cpu
