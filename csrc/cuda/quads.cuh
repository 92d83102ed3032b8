// Rows of a matrix in quads: 4 neighbouring columns, which one Philox call decides on, for one
// thread. A quad moves in packs of VEC elements: 16 bytes of float at VEC = 4, less where a width
// or an address allows no more.
#pragma once
#include <algorithm>
#include <initializer_list>

#include "cuda/launch.cuh"

namespace ssept::cuda {

inline constexpr int kQuad = 4;

inline int64_t num_quads(int64_t width) { return (width + kQuad - 1) / kQuad; }

// Columns `column` to `column + 3` of a row; zeros from `width` on. VEC divides the width.
template <int VEC, class T>
__device__ __forceinline__ void load_quad(const T* row, int64_t column, int64_t width,
                                          Accumulator<T> (&x)[kQuad]) {
#pragma unroll
  for (int i = 0; i < kQuad; i += VEC) {
    Pack<T, VEC> pack{};
    if (column + i < width) pack = *reinterpret_cast<const Pack<T, VEC>*>(row + column + i);
#pragma unroll
    for (int j = 0; j < VEC; ++j) x[i + j] = widen(pack.value[j]);
  }
}

template <int VEC, class T>
__device__ __forceinline__ void store_quad(T* row, int64_t column, int64_t width,
                                           const Accumulator<T> (&x)[kQuad]) {
#pragma unroll
  for (int i = 0; i < kQuad; i += VEC) {
    Pack<T, VEC> pack;
#pragma unroll
    for (int j = 0; j < VEC; ++j) pack.value[j] = narrow<T>(x[i + j]);
    if (column + i < width) *reinterpret_cast<Pack<T, VEC>*>(row + column + i) = pack;
  }
}

// to[j] += x[j], by one instruction where there is one.
template <int VEC, class A>
__device__ __forceinline__ void atomic_add(A* to, const A* x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr bool kVectorAtomics = std::is_same_v<A, float>;
#else
  constexpr bool kVectorAtomics = false;
#endif
  if constexpr (kVectorAtomics && VEC == 4) {
    atomicAdd(reinterpret_cast<float4*>(to), make_float4(x[0], x[1], x[2], x[3]));
  } else if constexpr (kVectorAtomics && VEC == 2) {
    atomicAdd(reinterpret_cast<float2*>(to), make_float2(x[0], x[1]));
  } else {
#pragma unroll
    for (int j = 0; j < VEC; ++j) atomicAdd(to + j, x[j]);
  }
}

// Calls f.template operator()<VEC>() with the largest VEC of 4, 2 and 1 that divides all `widths`
// and by which all `rows`, of T, are aligned.
template <class T, class F>
cudaError_t with_pack_size(std::initializer_list<int64_t> widths,
                           std::initializer_list<const T*> rows, F&& f) {
  const auto fits = [&](int64_t vec) {
    for (int64_t width : widths)
      if (width % vec != 0) return false;
    for (const T* base : rows)
      if (reinterpret_cast<uintptr_t>(base) % (sizeof(T) * vec) != 0) return false;
    return true;
  };
  if (fits(4)) return f.template operator()<4>();
  if (fits(2)) return f.template operator()<2>();
  return f.template operator()<1>();
}

inline constexpr int kQuadThreads = 256, kQuadsPerThread = 2;

// Calls f(row, first column) for each quad of the whole rows that a block is for: few enough for
// 32-bit divisions.
template <class F>
__device__ __forceinline__ void for_each_quad(int64_t num_rows, int64_t width,
                                              int64_t rows_per_block, F&& f) {
  const int64_t first_row = blockIdx.x * rows_per_block;
  const auto quads = static_cast<uint32_t>((width + kQuad - 1) / kQuad);
  const auto count = static_cast<uint32_t>(min(rows_per_block, num_rows - first_row)) * quads;
  for (uint32_t i = threadIdx.x; i < count; i += kQuadThreads)
    f(first_row + i / quads, static_cast<int64_t>(i % quads) * kQuad);
}

// Launches a kernel that goes through (num_rows, width) by `for_each_quad`, whose last parameter is
// the rows of a block.
template <class... Params, class... Args>
cudaError_t launch_on_quads(void (*kernel)(Params...), int64_t num_rows, int64_t width,
                            cudaStream_t stream, Args... args) {
  if (num_rows == 0 || width == 0) return cudaSuccess;
  const int64_t rows = std::max<int64_t>(1, kQuadThreads * kQuadsPerThread / num_quads(width));
  const dim3 grid(static_cast<unsigned>((num_rows + rows - 1) / rows));
  return launch(kernel, grid, kQuadThreads, 0, stream, args..., rows);
}

}  // namespace ssept::cuda
