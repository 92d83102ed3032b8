// float16 and bfloat16 in vectors, and products of bfloat16. What some processors have instructions
// for is written in assembly: compilers' intrinsics are not inlined into code that is compiled for
// several kinds of registers. These instructions take numbers below 1.2e-38 for 0.
#pragma once
#include <cstdint>
#include <utility>

#include "cpu/registers.h"

namespace ssept::cpu {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// Vectors of 16-bit numbers, as many as S has lanes of float.
template <class S>
using HalfVec = typename Simd<S::template kLanes<float> * 2, 1>::template Vec<uint16_t>;

// Each number as the lower half of a lane, and bfloat16 as float32, of which it is the upper half.
template <class S>
SSEPT_INLINE typename S::template Vec<uint32_t> lower_halves(HalfVec<S> x) {
  if constexpr (S::kBFloat16) {  // compilers take several instructions
    typename S::template Vec<uint32_t> lanes;
    asm("vpmovzxwd %1, %0" : "=v"(lanes) : "v"(x));
    return lanes;
  } else {
    return __builtin_convertvector(x, typename S::template Vec<uint32_t>);
  }
}
template <class S>
SSEPT_INLINE typename S::template Vec<float> widened_bfloat16(HalfVec<S> x) {
  return reinterpret_cast<typename S::template Vec<float>>(lower_halves<S>(x) << 16);
}

// float16 as float32: torch's conversion, of one number, is no SIMD.
template <class S>
SSEPT_INLINE typename S::template Vec<float> widened_float16(HalfVec<S> x) {
  using Vec = typename S::template Vec<float>;
  using Bits = typename S::template Vec<uint32_t>;
  constexpr uint32_t kBias = 112u << 23, kInfinity = 31u << 23, kLeastNormal = 1u << 23;
  const Bits none{}, half = lower_halves<S>(x);
  const Bits rest = (half & 0x7fff) << 13;
  const Bits normal = rest + kBias + (rest < none + kInfinity ? none : none + kBias);
  const Vec shifted = reinterpret_cast<Vec>(rest + (kBias + kLeastNormal));
  const Bits subnormal =
      reinterpret_cast<Bits>(shifted - reinterpret_cast<Vec>(none + (kBias + kLeastNormal)));
  const Bits bits = rest < none + kLeastNormal ? subnormal : normal;
  return reinterpret_cast<Vec>(bits | (half & 0x8000) << 16);
}

// A vector of what is at x, in the type of its sums.
template <class S, class T, class A = Accumulator<T>>
SSEPT_INLINE typename S::template Vec<A> load_wide(const T* x) {
  if constexpr (std::is_same_v<T, A>) {
    return S::load(x);
  } else {
    const auto bits = *reinterpret_cast<const HalfVec<S>*>(x);
    if constexpr (std::is_same_v<T, Half>)
      return widened_float16<S>(bits);
    else
      return widened_bfloat16<S>(bits);
  }
}

// The first `count` numbers at x, and zeros behind them.
template <class S>
SSEPT_INLINE HalfVec<S> load_first(const BFloat16* x, int64_t count) {
  static_assert(S::kBFloat16);
  HalfVec<S> bits;
  asm("vmovdqu16 %1, %0%{%2%}%{z%}"
      : "=v"(bits)
      : "m"(*reinterpret_cast<const HalfVec<S>*>(x)), "Yk"((uint32_t{1} << count) - 1));
  return bits;
}

// x in bfloat16.
template <class S>
SSEPT_INLINE HalfVec<S> rounded(typename S::template Vec<float> x) {
  static_assert(S::kBFloat16);
  HalfVec<S> bits;
  asm("vcvtneps2bf16 %1, %0" : "=v"(bits) : "v"(x));
  return bits;
}

// x, as numbers of type T.
template <class S, class T, class A = Accumulator<T>>
SSEPT_INLINE void store_rounded(T* to, typename S::template Vec<A> x) {
  if constexpr (std::is_same_v<T, A>)
    S::store(to, x);
  else if constexpr (S::kBFloat16 && std::is_same_v<T, BFloat16>)
    *reinterpret_cast<HalfVec<S>*>(to) = rounded<S>(x);
  else
    for (int64_t i = 0; i < S::template kLanes<A>; ++i) to[i] = static_cast<T>(x[i]);
}

// Two neighbours of a sum of products, in bfloat16: the first is in the lower half.
using Pair = int32_t;

// What products of T are computed of, on the registers of S.
template <class S, class T>
using Element =
    std::conditional_t<S::kBFloat16 && std::is_same_v<T, BFloat16>, Pair, Accumulator<T>>;

// Numbers that an element holds; elements that `count` numbers take; numbers that these hold.
template <class E>
constexpr int64_t kNumbers = std::is_same_v<E, Pair> ? 2 : 1;
template <class E>
SSEPT_INLINE int64_t elements_of(int64_t count) {
  return (count + kNumbers<E> - 1) / kNumbers<E>;
}
template <class E>
SSEPT_INLINE int64_t whole_elements(int64_t count) {
  return elements_of<E>(count) * kNumbers<E>;
}

// sum + factor · x. By value: what is taken by reference would stay in memory.
template <class S, class A, class E>
SSEPT_INLINE typename S::template Vec<A> add_product(typename S::template Vec<A> sum, E factor,
                                                     typename S::template Vec<E> x) {
  if constexpr (std::is_same_v<E, Pair>) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(typename S::template Vec<E>{} + factor));
    return sum;
  } else {
    return sum + factor * x;
  }
}

// The element at x, which may be part of an array of other numbers, at an odd address.
template <class E>
SSEPT_INLINE E element(const E* x) {
  E copy;
  __builtin_memcpy(&copy, x, sizeof(E));
  return copy;
}

// sum += factor · x, in which a factor of zero hides even NaN; of a pair, each half by itself, in
// the order of the instruction.
template <class E, class A>
SSEPT_INLINE void add_unhidden(A& sum, E factor, E x) {
  if constexpr (std::is_same_v<E, Pair>) {
    for (const int shift : {16, 0}) {
      const auto of = [&](Pair pair) {
        return static_cast<float>(BFloat16(
            static_cast<uint16_t>(static_cast<uint32_t>(pair) >> shift), BFloat16::from_bits()));
      };
      if (of(factor) != 0) sum += of(factor) * of(x);
    }
  } else if (factor != 0) {
    sum += factor * x;
  }
}

// Pairs of neighbours in x, and then in y; and of a number in x and the one below it in y.
template <class S>
SSEPT_INLINE typename S::template Vec<Pair> pairs_across(HalfVec<S> x, HalfVec<S> y) {
  typename S::template Vec<Pair> pairs;
  asm("vinserti64x4 $1, %2, %g1, %0" : "=v"(pairs) : "v"(x), "v"(y));
  return pairs;
}
template <class S>
SSEPT_INLINE typename S::template Vec<Pair> pairs_down(HalfVec<S> x, HalfVec<S> y) {
  using Pairs = typename S::template Vec<Pair>;
  return reinterpret_cast<Pairs>(lower_halves<S>(x)) |
         reinterpret_cast<Pairs>(widened_bfloat16<S>(y));
}

}  // namespace ssept::cpu
