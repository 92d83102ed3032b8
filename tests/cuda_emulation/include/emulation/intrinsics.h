// Atomics, and the device functions that need no other thread. Only those our kernels use: add what
// is missing.
#pragma once
#include <math.h>

#include <bit>
#include <concepts>
#include <cstdint>
#include <type_traits>

#include "emulation/emulator.h"

namespace cuda_emulation {

using Word = unsigned int;
using DoubleWord =
    unsigned long long;  // CUDA has no atomics on uint64_t, which is another type here

template <class T, class... Types>
concept OneOf = (std::same_as<T, Types> || ...);

// Replaces *address by update(*address); returns what was there. Inlined, as all that calls it, so
// that the race detector can name the kernel's line.
template <class T, class Update>
[[gnu::always_inline]] inline T atomically(T* address, Update update) {
  const AtomicScope scope;
  const T old = *address;
  *address = update(old);
  return old;
}

}  // namespace cuda_emulation

template <class T>
  requires cuda_emulation::OneOf<T, int, cuda_emulation::Word, cuda_emulation::DoubleWord, float,
                                 double>
[[gnu::always_inline]] inline T atomicAdd(T* address, std::type_identity_t<T> value) {
  return cuda_emulation::atomically(address, [=](T old) { return old + value; });
}

template <class T>
  requires cuda_emulation::OneOf<T, int, cuda_emulation::Word, cuda_emulation::DoubleWord,
                                 long long>
[[gnu::always_inline]] inline T atomicMax(T* address, std::type_identity_t<T> value) {
  return cuda_emulation::atomically(address, [=](T old) { return old < value ? value : old; });
}

template <class T>
  requires cuda_emulation::OneOf<T, int, cuda_emulation::Word, cuda_emulation::DoubleWord,
                                 long long>
[[gnu::always_inline]] inline T atomicMin(T* address, std::type_identity_t<T> value) {
  return cuda_emulation::atomically(address, [=](T old) { return value < old ? value : old; });
}

template <class T>
  requires cuda_emulation::OneOf<T, int, cuda_emulation::Word, cuda_emulation::DoubleWord, float>
[[gnu::always_inline]] inline T atomicExch(T* address, std::type_identity_t<T> value) {
  return cuda_emulation::atomically(address, [=](T) { return value; });
}

template <class T>
  requires cuda_emulation::OneOf<T, int, cuda_emulation::Word, cuda_emulation::DoubleWord>
[[gnu::always_inline]] inline T atomicCAS(T* address, std::type_identity_t<T> expected,
                                          std::type_identity_t<T> value) {
  return cuda_emulation::atomically(address, [=](T old) { return old == expected ? value : old; });
}

// Nothing is reordered here. The race detector gives fences no meaning: they order no two blocks.
inline void __threadfence_block() {}
inline void __threadfence() {}
inline void __threadfence_system() {}

template <class T>
[[gnu::always_inline]] inline T __ldg(const T* address) {
  return *address;
}

[[noreturn]] inline void __trap() { cuda_emulation::fail("__trap()"); }

// glibc declares functions of these names already.
#define __expf(x) expf(x)
#define __logf(x) logf(x)
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) noexcept { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) noexcept { return 1.0 / sqrt(x); }

// CUDA also takes some mixed types, and calls the others ambiguous.
template <class T>
  requires std::is_arithmetic_v<T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}

template <class T>
  requires std::is_arithmetic_v<T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}

inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
