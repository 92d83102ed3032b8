// Products of small matrices by one warp. `Exact` computes in float or double, `TensorCores` by
// mma.sync (sm_80 and newer) from half types or TF32. Kernels are templates over the two, as both
// keep their sums in the same places.
#pragma once
#include <cstring>

#include "cuda/launch.cuh"

namespace ssept::cuda {

// Sums of 16 rows by 8 columns. Lane l holds, of rows g = l / 4 and g + 8 and of columns
// c = 2 (l % 4) and c + 1, the elements (g, c), (g, c + 1), (g + 8, c), (g + 8, c + 1).
template <class A>
struct Sums {
  A x[4] = {};
};

__device__ __forceinline__ int lane_index() { return threadIdx.x % kWarpSize; }
__device__ __forceinline__ int lane_row() { return threadIdx.x % kWarpSize / 4; }
__device__ __forceinline__ int lane_column() { return threadIdx.x % 4 * 2; }

// Both have these members, in which a tile is a matrix in shared memory with rows of LD elements,
// 16-byte aligned:
//   kDepth              columns of the left operand that one multiply() takes
//   kUnroll             how many of them, one after the other, are worth their code
//   Left                16 rows by kDepth columns, in registers
//   Right               kDepth by 8, in registers; they come in pairs, for 16 columns
//   left(tile)          Left, from rows of a tile
//   left(sums)          Left, from kDepth / 8 neighbouring sums
//   right(tile)         a pair from 16 rows of a tile, which become its columns
//   right_of_rows(tile) a pair from kDepth rows and 16 columns of a tile. For a Left made of sums
//                       only: both may permute kDepth, in the same way
//   multiply(sums, left, right)   sums += left · right
//   exp2(x)             as exact as the products are

// T is float or double.
template <class T>
struct Exact {
  using Element = T;
  static constexpr int kDepth = 8, kUnroll = 1;
  static constexpr bool kIsExact = true;

  struct Left {
    T x[2][kDepth];  // rows g and g + 8
  };
  struct Right {
    T x[2][kDepth];  // columns c and c + 1
  };

  template <int LD>
  static __device__ __forceinline__ Left left(const T* tile) {
    Left to;
    load_row(to.x[0], tile + lane_row() * LD);
    load_row(to.x[1], tile + (lane_row() + 8) * LD);
    return to;
  }

  static __device__ __forceinline__ Left left(const Sums<T>* sums) {
    Left to;
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      to.x[0][k] = __shfl_sync(kAllLanes, sums->x[k % 2], k / 2, 4);
      to.x[1][k] = __shfl_sync(kAllLanes, sums->x[2 + k % 2], k / 2, 4);
    }
    return to;
  }

  template <int LD>
  static __device__ __forceinline__ void right(Right (&to)[2], const T* tile) {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      load_row(to[j / 2].x[j % 2], tile + (j / 2 * 8 + lane_column() + j % 2) * LD);
  }

  template <int LD>
  static __device__ __forceinline__ void right_of_rows(Right (&to)[2], const T* tile) {
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int k = 0; k < kDepth; ++k) {
        const auto two =
            *reinterpret_cast<const Pack<T, 2>*>(tile + k * LD + j * 8 + lane_column());
        to[j].x[0][k] = two.value[0];
        to[j].x[1][k] = two.value[1];
      }
  }

  static __device__ __forceinline__ void multiply(Sums<T>& sums, const Left& left,
                                                  const Right& right) {
#pragma unroll
    for (int k = 0; k < kDepth; ++k)
#pragma unroll
      for (int e = 0; e < 4; ++e) sums.x[e] += left.x[e / 2][k] * right.x[e % 2][k];
  }

  static __device__ __forceinline__ T exp2(T x) { return ::exp2(x); }

 private:
  static __device__ __forceinline__ void load_row(T (&to)[kDepth], const T* row) {
    constexpr int kVec = 16 / sizeof(T);
#pragma unroll
    for (int k = 0; k < kDepth; k += kVec) {
      const auto pack = *reinterpret_cast<const Pack<T, kVec>*>(row + k);
#pragma unroll
      for (int i = 0; i < kVec; ++i) to[k + i] = pack.value[i];
    }
  }
};

// What follows up to `TensorCores` is PTX, each with a twin that says what it does and runs on the
// emulation.

// Of four matrices of 8 rows by 16 bytes, lane l gets the 4 bytes l % 4 of row l / 4 of each. Lane
// 8 i + r says where row r of matrix i lies.
template <class T>
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const T* row) {
#ifdef SSEPT_CUDA_EMULATION
  constexpr int kVec = 4 / sizeof(T);
  for (int i = 0; i < 4; ++i) {
    const auto from =
        __shfl_sync(kAllLanes, reinterpret_cast<unsigned long long>(row), 8 * i + lane_index() / 4);
    const auto four_bytes = reinterpret_cast<const Pack<T, kVec>*>(from)[lane_index() % 4];
    std::memcpy(&to[i], &four_bytes, 4);
  }
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row))));
#endif
}

// The same of matrices of 8 rows by 8 elements of 2 bytes, transposed: lane l gets column l / 4 of
// rows 2 (l % 4) and 2 (l % 4) + 1.
template <class T>
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&to)[4], const T* row) {
  static_assert(sizeof(T) == 2);
#ifdef SSEPT_CUDA_EMULATION
  for (int i = 0; i < 8; ++i) {
    const auto from = __shfl_sync(kAllLanes, reinterpret_cast<unsigned long long>(row),
                                  i / 2 * 8 + lane_index() % 4 * 2 + i % 2);
    const T element = reinterpret_cast<const T*>(from)[lane_index() / 4];
    std::memcpy(reinterpret_cast<char*>(&to[i / 2]) + i % 2 * 2, &element, 2);
  }
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row))));
#endif
}

// A float rounded to TF32's 10 bits, as a word whose other bits are zero.
__device__ __forceinline__ uint32_t to_tf32(float x) {
#ifdef SSEPT_CUDA_EMULATION
  const uint32_t bits = __float_as_uint(x);
  const bool is_finite = (bits >> 23 & 255) != 255;
  return is_finite ? (bits + 0x1000u) & ~0x1fffu : bits;
#else
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
#endif
}

// 2^x to about 22 bits; results too small for a normal float are 0.
__device__ __forceinline__ float fast_exp2(float x) {
#ifdef SSEPT_CUDA_EMULATION
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// sums += left · right, for 16 rows, 8 columns and a depth of 8 words of 4 bytes. Word w of row r
// is register r / 8 + 2 (w / 4) of `left` in lane 4 (r % 8) + w % 4; word w of column c is register
// w / 4 of `right` in lane 4 c + w % 4.
template <class T>
__device__ __forceinline__ void multiply_fragments(float (&sums)[4], const uint32_t (&left)[4],
                                                   const uint32_t (&right)[2]) {
#ifdef SSEPT_CUDA_EMULATION
  using namespace cuda_emulation;
  const auto of_all_lanes = [](uint64_t low, uint64_t high) {
    return sync_lanes("mma", kAllLanes, low | high << 32, Location::current()).values;
  };
  const std::array<uint64_t, kWarpSize> lefts[2] = {of_all_lanes(left[0], left[1]),
                                                    of_all_lanes(left[2], left[3])};
  const std::array<uint64_t, kWarpSize> rights = of_all_lanes(right[0], right[1]);
  const auto element = [](uint64_t word, int i) {
    if constexpr (sizeof(T) == 4) return __uint_as_float(static_cast<uint32_t>(word) & ~0x1fffu);
    T value;
    const auto bits = static_cast<uint16_t>(word >> 16 * i);
    std::memcpy(static_cast<void*>(&value), &bits, sizeof bits);
    return widen(value);
  };
  for (int e = 0; e < 4; ++e)
    for (int w = 0; w < 8; ++w) {
      const uint64_t l = lefts[w / 4][lane_row() * 4 + w % 4] >> (e / 2 * 32);
      const uint64_t r = rights[(lane_column() + e % 2) * 4 + w % 4] >> (w / 4 * 32);
      for (int i = 0; i < 4 / static_cast<int>(sizeof(T)); ++i)
        sums[e] += element(l, i) * element(r, i);
    }
#else
#define SSEPT_MMA(shape_and_types)                                                      \
  asm volatile("mma.sync.aligned." shape_and_types                                      \
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"       \
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])             \
               : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), \
                 "r"(right[1]))
  if constexpr (std::is_same_v<T, __half>)
    SSEPT_MMA("m16n8k16.row.col.f32.f16.f16.f32");
  else if constexpr (std::is_same_v<T, __nv_bfloat16>)
    SSEPT_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
  else
    SSEPT_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
#undef SSEPT_MMA
#endif
}

// T is __half, __nv_bfloat16, or float, which is rounded to TF32.
template <class T>
struct TensorCores {
  using Element = T;
  static constexpr bool kIsHalf = sizeof(T) == 2;
  static constexpr int kDepth = kIsHalf ? 16 : 8, kUnroll = 64;
  static constexpr bool kIsExact = false;

  struct Left {
    uint32_t word[4];
  };
  struct Right {
    uint32_t word[2];
  };

  template <int LD>
  static __device__ __forceinline__ Left left(const T* tile) {
    Left to;
    load_matrices(to.word, tile + lane_index() % 16 * LD + lane_index() / 16 * kVec);
    round(to.word);
    return to;
  }

  static __device__ __forceinline__ Left left(const Sums<float>* sums) {
    if constexpr (kIsHalf) {
      return {{pair(sums[0].x[0], sums[0].x[1]), pair(sums[0].x[2], sums[0].x[3]),
               pair(sums[1].x[0], sums[1].x[1]), pair(sums[1].x[2], sums[1].x[3])}};
    } else {
      // Takes column 2 t as the t-th, column 2 t + 1 as the (4 + t)-th: see right_of_rows().
      return {{to_tf32(sums->x[0]), to_tf32(sums->x[2]), to_tf32(sums->x[1]), to_tf32(sums->x[3])}};
    }
  }

  template <int LD>
  static __device__ __forceinline__ void right(Right (&to)[2], const T* tile) {
    uint32_t words[4];
    const int row = lane_index() / 16 * 8 + lane_index() % 8;
    load_matrices(words, tile + row * LD + lane_index() / 8 % 2 * kVec);
    round(words);
    to[0] = {{words[0], words[1]}};
    to[1] = {{words[2], words[3]}};
  }

  template <int LD>
  static __device__ __forceinline__ void right_of_rows(Right (&to)[2], const T* tile) {
    if constexpr (kIsHalf) {
      uint32_t words[4];
      load_matrices_transposed(words, tile + lane_index() % 16 * LD + lane_index() / 16 * kVec);
      to[0] = {{words[0], words[1]}};
      to[1] = {{words[2], words[3]}};
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        to[i / 2].word[i % 2] =
            to_tf32(tile[(lane_column() + i % 2) * LD + i / 2 * 8 + lane_row()]);
    }
  }

  static __device__ __forceinline__ void multiply(Sums<float>& sums, const Left& left,
                                                  const Right& right) {
    multiply_fragments<T>(sums.x, left.word, right.word);
  }

  static __device__ __forceinline__ float exp2(float x) { return fast_exp2(x); }

 private:
  static constexpr int kVec = 16 / sizeof(T);  // in a row of the matrices that are loaded

  static __device__ __forceinline__ void round(uint32_t (&words)[4]) {
    if constexpr (!kIsHalf)
#pragma unroll
      for (uint32_t& word : words) word = to_tf32(__uint_as_float(word));
  }

  static __device__ __forceinline__ uint32_t pair(float low, float high) {
    const Pack<T, 2> two{{narrow<T>(low), narrow<T>(high)}};
    uint32_t word;
    std::memcpy(&word, &two, sizeof word);
    return word;
  }
};

}  // namespace ssept::cuda
