// Products of small matrices by one warp. `Exact` computes them with the arithmetic of the
// accumulator's type; `TensorCores` by mma.sync (sm_80 and newer). Kernels are templates over the
// two, as both keep their sums in the same places.
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
//   right(tile)         a pair from 16 rows of a tile, which are its columns: the product takes
//   rows
//                       by rows
//   right_of_rows(tile) a pair from kDepth rows and 16 columns of a tile. For a Left made of sums
//                       only: both may permute kDepth, in the same way
//   multiply(sums, left, right)   sums += left · right
//   exp2(x)             as exact as the products are

template <class T>
struct Exact {
  using Element = T;
  using A = Accumulator<T>;
  static constexpr int kDepth = 8, kUnroll = 1;
  static constexpr bool kIsExact = true;

  struct Left {
    A x[2][kDepth];  // rows g and g + 8
  };
  struct Right {
    A x[2][kDepth];  // columns c and c + 1
  };

  template <int LD>
  static __device__ __forceinline__ Left left(const T* tile) {
    Left to;
    load_row(to.x[0], tile + lane_row() * LD);
    load_row(to.x[1], tile + (lane_row() + 8) * LD);
    return to;
  }

  static __device__ __forceinline__ Left left(const Sums<A>* sums) {
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
        to[j].x[0][k] = widen(two.value[0]);
        to[j].x[1][k] = widen(two.value[1]);
      }
  }

  static __device__ __forceinline__ void multiply(Sums<A>& sums, const Left& left,
                                                  const Right& right) {
#pragma unroll
    for (int k = 0; k < kDepth; ++k)
#pragma unroll
      for (int e = 0; e < 4; ++e) sums.x[e] += left.x[e / 2][k] * right.x[e % 2][k];
  }

  static __device__ __forceinline__ float exp2(float x) { return ::exp2f(x); }
  static __device__ __forceinline__ double exp2(double x) { return ::exp2(x); }

 private:
  static __device__ __forceinline__ void load_row(A (&to)[kDepth], const T* row) {
    constexpr int kVec = sizeof(T) == 2 ? 8 : 16 / sizeof(T);
#pragma unroll
    for (int k = 0; k < kDepth; k += kVec) {
      const auto pack = *reinterpret_cast<const Pack<T, kVec>*>(row + k);
#pragma unroll
      for (int i = 0; i < kVec; ++i) to[k + i] = widen(pack.value[i]);
    }
  }
};

}  // namespace ssept::cuda
