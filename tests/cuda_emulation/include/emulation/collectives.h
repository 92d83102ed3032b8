// Barriers, shuffles and votes.
#pragma once
#include <cstring>
#include <type_traits>

#include "emulation/emulator.h"

inline void __syncthreads(cuda_emulation::Location where = cuda_emulation::Location::current()) {
  cuda_emulation::sync_block(false, where);
}

inline int __syncthreads_count(
    int predicate, cuda_emulation::Location where = cuda_emulation::Location::current()) {
  return cuda_emulation::sync_block(predicate != 0, where).in_favour;
}

inline int __syncthreads_and(int predicate,
                             cuda_emulation::Location where = cuda_emulation::Location::current()) {
  const cuda_emulation::BarrierVotes votes = cuda_emulation::sync_block(predicate != 0, where);
  return votes.in_favour == votes.voters;
}

inline int __syncthreads_or(int predicate,
                            cuda_emulation::Location where = cuda_emulation::Location::current()) {
  return cuda_emulation::sync_block(predicate != 0, where).in_favour != 0;
}

inline void __syncwarp(unsigned mask = ~0u,
                       cuda_emulation::Location where = cuda_emulation::Location::current()) {
  cuda_emulation::sync_lanes("__syncwarp", mask, 0, where);
}

inline unsigned __ballot_sync(
    unsigned mask, int predicate,
    cuda_emulation::Location where = cuda_emulation::Location::current()) {
  const cuda_emulation::Exchange& votes =
      cuda_emulation::sync_lanes("__ballot_sync", mask, predicate != 0, where);
  unsigned ballot = 0;
  for (int lane = 0; lane < warpSize; ++lane) {
    const bool took_part = votes.lanes >> lane & 1;
    if (took_part && votes.values[lane]) ballot |= 1u << lane;
  }
  return ballot;
}

inline int __any_sync(unsigned mask, int predicate,
                      cuda_emulation::Location where = cuda_emulation::Location::current()) {
  return __ballot_sync(mask, predicate, where) != 0;
}

inline int __all_sync(unsigned mask, int predicate,
                      cuda_emulation::Location where = cuda_emulation::Location::current()) {
  return __ballot_sync(mask, !predicate, where) == 0;
}

inline unsigned __activemask() {
  cuda_emulation::fail("__activemask() says nothing portable: pass the mask down");
}

struct __half;
struct __nv_bfloat16;

namespace cuda_emulation {

template <class T>
concept Shuffled = (std::is_arithmetic_v<T> && sizeof(T) <= sizeof(uint64_t)) ||
                   std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>;

inline int lane() { return execution.thread % kWarpSize; }
inline int first_lane(int width) { return lane() & ~(width - 1); }

// Lanes are in groups of `width`; a source outside of the own group means the own value.
template <Shuffled T>
T shuffle(const char* name, unsigned mask, T value, int source, int width, Location where) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const Exchange& exchange = sync_lanes(name, mask, bits, where);
  if (source < first_lane(width) || source >= first_lane(width) + width) return value;
  std::memcpy(static_cast<void*>(&value), &exchange.values[source], sizeof(T));
  return value;
}

}  // namespace cuda_emulation

template <cuda_emulation::Shuffled T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize,
              cuda_emulation::Location where = cuda_emulation::Location::current()) {
  source = cuda_emulation::first_lane(width) + (source & (width - 1));
  return cuda_emulation::shuffle("__shfl_sync", mask, value, source, width, where);
}

template <cuda_emulation::Shuffled T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize,
                  cuda_emulation::Location where = cuda_emulation::Location::current()) {
  const int source = cuda_emulation::lane() ^ lane_mask;
  return cuda_emulation::shuffle("__shfl_xor_sync", mask, value, source, width, where);
}

template <cuda_emulation::Shuffled T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                   cuda_emulation::Location where = cuda_emulation::Location::current()) {
  const int source = cuda_emulation::lane() + static_cast<int>(delta);
  return cuda_emulation::shuffle("__shfl_down_sync", mask, value, source, width, where);
}

template <cuda_emulation::Shuffled T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                 cuda_emulation::Location where = cuda_emulation::Location::current()) {
  const int source = cuda_emulation::lane() - static_cast<int>(delta);
  return cuda_emulation::shuffle("__shfl_up_sync", mask, value, source, width, where);
}
