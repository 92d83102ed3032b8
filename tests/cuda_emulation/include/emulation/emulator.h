// What the emulator offers to the CUDA functions in the headers beside this one, and to the race
// detector. It is compiled apart from the kernels, so that the race detector does not see its work.
#pragma once
#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <string>

// Hidden, as every library of emulated kernels has its own emulator and several are loaded in one
// process.
#pragma GCC visibility push(hidden)

namespace cuda_emulation {

using Location = std::source_location;

inline constexpr int kWarpSize = 32;
inline constexpr size_t kDefaultDynamicBytes = 48 << 10;  // of shared memory, without opting in
inline constexpr size_t kMaxDynamicBytes = 227 << 10;     // with opting in, on an H100
// What this device allows with opting in: EMU_SHARED_MEMORY bytes, by default as an H100.
size_t max_dynamic_bytes();
inline constexpr size_t kGuardBytes = 1024;  // behind them, to notice who writes too far

struct Range {
  uintptr_t begin = 0;
  size_t size = 0;
  bool contains(uintptr_t address) const { return address - begin < size; }
};

// What is running now.
struct Execution {
  int thread = -1;           // its index in the block; -1 outside of kernels
  Range stack;               // that thread's
  Range shared_memory;       // every __shared__ variable, static and dynamic
  size_t dynamic_bytes = 0;  // of dynamic shared memory the launch asked for
  bool in_atomic = false;    // the thread is inside an atomic operation
};
extern Execution execution;

// Events the race detector listens to.
struct Listener {
  void (*launch_begins)() = [] {};
  void (*block_begins)(int num_threads) = [](int) {};
  void (*block_synchronised)() = [] {};
  void (*warp_synchronised)(int warp, unsigned lanes) = [](int, unsigned) {};
};
extern Listener listener;

// Runs `thread_body` once for every thread of a grid. Throws std::runtime_error for a bug in it.
void run_grid(dim3 grid, dim3 block, size_t dynamic_bytes,
              const std::function<void()>& thread_body);

// run_grid() within the limits of a real launch; beyond them, the error of a real one.
cudaError_t launch(const void* kernel, const cudaLaunchConfig_t& config,
                   const std::function<void()>& thread_body);

// Ends the running kernel: its launch throws std::runtime_error.
[[noreturn]] void fail(const std::string& message);

struct BarrierVotes {
  int in_favour = 0;
  int voters = 0;
};
BarrierVotes sync_block(bool vote, Location where);

// What the lanes that took part in a warp collective brought along.
struct Exchange {
  unsigned lanes = 0;
  std::array<uint64_t, kWarpSize> values;  // all bits set (NaN) for lanes that took no part
};
// Waits for all lanes of `mask` that still run to call it too, with the same `name`. The result is
// valid until this thread's next call.
const Exchange& sync_lanes(const char* name, unsigned mask, uint64_t value, Location where);

// Tells the race detector that the accesses while this lives are those of an atomic operation.
struct AtomicScope {
  AtomicScope();
  ~AtomicScope();
};

}  // namespace cuda_emulation

// CUDA's built-in variables. The dynamic shared memory is declared by the kernels, too, as
// extern __shared__ __align__(16) unsigned char smem_raw[];
extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;
inline constexpr int warpSize = cuda_emulation::kWarpSize;
alignas(128) extern constinit thread_local unsigned char smem_raw[];

#pragma GCC visibility pop
