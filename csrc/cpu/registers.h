// Vectors as wide as the machine's registers.
#pragma once
#include <cstdint>
#include <type_traits>

#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace ssept::cpu {

// What a kernel is compiled for: vectors of BYTES bytes, how many rows of a product are kept in
// registers at once, with two vectors each, and whether there are instructions for bfloat16.
template <int BYTES, int ROWS, bool BFLOAT16 = false>
struct Simd {
  static constexpr int64_t kRows = ROWS;
  static constexpr bool kBFloat16 = BFLOAT16;

  template <class A>
  static constexpr int64_t kLanes = BYTES / sizeof(A);

  template <class A>
  struct VecOf {
    typedef A type __attribute__((vector_size(BYTES), aligned(sizeof(A)), may_alias));
  };
  template <class A>
  using Vec = typename VecOf<A>::type;

  // By value: Clang takes what a function returns a reference to for aligned as a whole vector.
  template <class A>
  SSEPT_INLINE static Vec<A> load(const A* x) {
    return *reinterpret_cast<const Vec<A>*>(x);
  }
  template <class A>
  SSEPT_INLINE static void store(A* x, Vec<A> vector) {
    *reinterpret_cast<Vec<A>*>(x) = vector;
  }

  SSEPT_INLINE static int64_t whole_rows(int64_t n) { return (n + ROWS - 1) / ROWS * ROWS; }
  template <class A>
  SSEPT_INLINE static int64_t whole_vectors(int64_t n) {
    return (n + kLanes<A> - 1) / kLanes<A> * kLanes<A>;
  }
};

// The lanes INDEX of x and, counted on from there, of y.
template <class S, class A, size_t... INDEX>
SSEPT_INLINE typename S::template Vec<A> shuffle(typename S::template Vec<A> x,
                                                 typename S::template Vec<A> y) {
#ifdef __clang__
  return __builtin_shufflevector(x, y, INDEX...);
#else
  using Index = std::conditional_t<sizeof(A) == 2, int16_t,
                                   std::conditional_t<sizeof(A) == 4, int32_t, int64_t> >;
  typedef Index Indices __attribute__((vector_size(sizeof(x))));
  return __builtin_shuffle(x, y, Indices{static_cast<Index>(INDEX)...});
#endif
}

// Runs f(Simd) compiled for the registers of `simd_level`; those with bfloat16 only where T is it.
// Unlike SSEPT_SIMD_CLONES, f knows how wide they are: vectors wider than that would be computed in
// memory, dozens of times slower. f and all it calls must be SSEPT_INLINE.
#if defined(__x86_64__) && defined(__GNUC__)
template <class F>
[[gnu::noinline, gnu::target("arch=x86-64-v4,avx512bf16")]] void run_with_bfloat16(F& f) {
  f(Simd<64, 8, true>());
}
template <class F>
[[gnu::noinline, gnu::target("arch=x86-64-v4")]] void run_with_avx512(F& f) {
  f(Simd<64, 8>());
}
template <class F>
[[gnu::noinline, gnu::target("arch=x86-64-v3")]] void run_with_avx2(F& f) {
  f(Simd<32, 4>());
}
template <class F>
[[gnu::noinline]] void run_with_baseline(F& f) {
  f(Simd<16, 4>());
}
template <class T = void, class F>
void with_simd(F&& f) {
  switch (simd_level()) {
    case SimdLevel::kAvx512Bf16:
      if constexpr (std::is_same_v<T, torch::headeronly::BFloat16>) return run_with_bfloat16(f);
      [[fallthrough]];
    case SimdLevel::kAvx512:
      return run_with_avx512(f);
    case SimdLevel::kAvx2:
      return run_with_avx2(f);
    case SimdLevel::kBaseline:
      return run_with_baseline(f);
  }
}

// Calls f(S()) from code that is compiled for S, through a function that is not inlined: all
// callers of one instantiation of the template that f is written in share its code. Inlined on
// processors other than x86-64.
template <class S, class F>
SSEPT_INLINE void outlined(F&& f) {
  if constexpr (S::kBFloat16)
    run_with_bfloat16(f);
  else if constexpr (std::is_same_v<S, Simd<64, 8> >)
    run_with_avx512(f);
  else if constexpr (std::is_same_v<S, Simd<32, 4> >)
    run_with_avx2(f);
  else
    run_with_baseline(f);
}
#else
template <class T = void, class F>
void with_simd(F&& f) {
  f(Simd<16, 4>());
}
template <class S, class F>
SSEPT_INLINE void outlined(F&& f) {
  f(S());
}
#endif

}  // namespace ssept::cpu
