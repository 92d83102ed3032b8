// The sequences of a packed batch, seen from a kernel.
#pragma once
#include "cuda/launch.cuh"

namespace ssept::cuda {

// Sequence b owns the tokens cu_seqlens[b] to cu_seqlens[b + 1]. The host cannot check offsets
// without waiting for the device: those that make no sense are cut, so that nothing is read or
// written outside of the tokens.
class Sequences {
 public:
  __device__ __forceinline__ Sequences(const int32_t* cu_seqlens, int64_t num_sequences,
                                       int64_t num_tokens)
      : cu_seqlens_(cu_seqlens), num_sequences_(num_sequences), num_tokens_(num_tokens) {}

  // Tokens from here on are spare capacity.
  __device__ __forceinline__ int64_t num_real() const {
    return num_sequences_ == 0 ? 0 : begin(num_sequences_);
  }
  __device__ __forceinline__ int64_t begin(int64_t b) const { return cut(cu_seqlens_[b], 0); }
  __device__ __forceinline__ int64_t end(int64_t b) const {
    return cut(cu_seqlens_[b + 1], begin(b));
  }

  // The sequence that owns a real token, in all lanes of a warp, which search together: two rounds
  // for up to 1024 sequences.
  __device__ __forceinline__ int64_t owner_of(int64_t token) const {
    const int lane = threadIdx.x % kWarpSize;
    int64_t low = 0, high = num_sequences_;  // begin(low) <= token < begin(high)
    while (high - low > 1) {
      const int64_t step = (high - low + kWarpSize - 1) / kWarpSize;
      const int64_t probe = low + lane * step;
      const unsigned before = __ballot_sync(kAllLanes, probe < high && cu_seqlens_[probe] <= token);
      // No lane's if the first offset is beyond the token, which makes no sense.
      if (before != 0) low += (kWarpSize - 1 - __clz(static_cast<int>(before))) * step;
      high = min(low + step, high);
    }
    return low;
  }

 private:
  __device__ __forceinline__ int64_t cut(int64_t offset, int64_t low) const {
    return max(low, min(offset, num_tokens_));
  }

  const int32_t* cu_seqlens_;
  int64_t num_sequences_, num_tokens_;
};

// Calls f(b) for every sequence b of the user of `first`, in rising order, for a block that sums up
// the user's gradient; false, for the whole block, where `first` is not the user's first sequence.
// Each warp looks for itself.
template <class F>
__device__ __forceinline__ bool for_each_sequence_of_user(const int64_t* users,
                                                          int64_t num_sequences, int64_t first,
                                                          F&& f) {
  const int64_t user = users[first];
  for (int64_t start = 0; start < num_sequences; start += kWarpSize) {
    const int64_t b = start + threadIdx.x % kWarpSize;
    unsigned found = __ballot_sync(kAllLanes, b < num_sequences && users[b] == user);
    for (; found != 0; found &= found - 1) {
      const int64_t sequence = start + __ffs(static_cast<int>(found)) - 1;
      if (sequence < first) return false;
      f(sequence);
    }
  }
  return true;
}

}  // namespace ssept::cuda
