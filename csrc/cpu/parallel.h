// What the CPU kernels share: SIMD clones, type dispatch, ids, and the walk from tokens to
// sequences.
#pragma once
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "common/dropout.h"
#include "common/dtype.h"

// One binary for every x86-64: the loader picks the widest clone this machine runs. A macro, as
// attributes of functions cannot be templates. always_inline makes the body of the kernel part of
// each clone.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define SSEPT_SIMD_CLONES [[gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")]]
#else
#define SSEPT_SIMD_CLONES
#endif
#define SSEPT_INLINE [[gnu::always_inline]] inline
#define SSEPT_INLINE_LAMBDA __attribute__((always_inline))

namespace ssept::cpu {

template <class F>
void dispatch_floating(const char* name, ScalarType type, F&& f) {
  ssept::dispatch_floating<torch::headeronly::Half, torch::headeronly::BFloat16>(
      name, type, std::forward<F>(f));
}

// Rows per thread below which splitting the work costs more than it gains: about 16k
// multiplications.
inline int64_t grain(int64_t work_per_row) { return 1 + 16384 / (1 + work_per_row); }

// Calls f(i, memory) for i in 0..count-1, on torch's threads: each takes the next as soon as it is
// free, and has memory of its own, as make() returns it.
template <class Make, class F>
void for_each_part(int64_t count, Make&& make, F&& f) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), count);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    auto memory = make();
    for (int64_t i = next++; i < count; i = next++) f(i, memory);
  });
}

inline int no_memory() { return 0; }

// Zeroes what kernels do not write: the rows of spare capacity, from `first_row` on.
inline void zero_rows_from(const Tensor& x, int64_t first_row) {
  if (x.numel() == 0) return;
  const int64_t row_bytes = x.numel() / x.size(0) * static_cast<int64_t>(x.element_size());
  std::memset(mutable_data<char>(x) + first_row * row_bytes, 0,
              (x.size(0) - first_row) * row_bytes);
}

// Remembers one id outside its table, from any thread, to be thrown when the parallel work is done.
class BadId {
 public:
  // True where `id` is a row to look up: in first..rows-1. By default 0 is padding, and no error.
  bool usable(int64_t id, int64_t rows, int64_t first = 1) {
    if (id >= first && id < rows) return true;
    if (id != 0 || first == 0) {
      id_.store(id, std::memory_order_relaxed);
      found_.store(true, std::memory_order_relaxed);
    }
    return false;
  }
  void raise(const char* name, int64_t rows) const {
    if (found_.load()) throw_bad_id(name, id_.load(), rows);
  }

 private:
  std::atomic<bool> found_{false};  // not a value of id_: every number can be a bad id
  std::atomic<int64_t> id_{0};
};

// Throws for an id that is neither padding, 0, nor in the table, whether or not it would be read.
inline void check_ids(const char* name, const int64_t* ids, int64_t count, int64_t rows) {
  BadId bad;
  for (int64_t i = 0; i < count; ++i) bad.usable(ids[i], rows);
  bad.raise(name, rows);
}
inline void check_users(const int64_t* users, int64_t num_sequences, int64_t rows) {
  check_ids("users", users, users ? num_sequences : 0, rows);
}

// The sequence that owns a token, for tokens visited in rising order. Not a callback: a lambda that
// is not inlined would be compiled without the SIMD clone's instructions.
class SequenceCursor {
 public:
  SequenceCursor(const int32_t* cu_seqlens, int64_t num_sequences, int64_t first_token)
      : cu_seqlens_(cu_seqlens),
        sequence_(std::upper_bound(cu_seqlens, cu_seqlens + num_sequences + 1, first_token) -
                  cu_seqlens - 1) {}
  // `token` must be below cu_seqlens[B].
  int64_t at(int64_t token) {
    while (token >= cu_seqlens_[sequence_ + 1]) ++sequence_;
    return sequence_;
  }

 private:
  const int32_t* cu_seqlens_;
  int64_t sequence_;
};

}  // namespace ssept::cpu
