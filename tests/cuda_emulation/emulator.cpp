// Runs a grid block by block. Each CUDA thread is a fiber that only barriers and warp collectives
// suspend.
#include "emulation/emulator.h"

#include <link.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "fiber.h"

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;
constexpr size_t kDynamicBytes = cuda_emulation::kMaxDynamicBytes + cuda_emulation::kGuardBytes;
alignas(128) constinit thread_local unsigned char smem_raw[kDynamicBytes];

namespace cuda_emulation {

Execution execution;
constinit Listener listener;

namespace {

constexpr unsigned char kUninitialised = 0xFF;  // NaN in every floating-point type

enum class State { kReady, kAtBarrier, kInCollective, kExited };

struct Thread {
  Fiber fiber;
  uint3 index;
  State state;
  Location waits_at;
  BarrierVotes votes;  // of its last barrier
  Exchange exchange;   // of its last collective
};

// A warp collective that some of its lanes have not reached yet.
struct Collective {
  std::string_view name;
  unsigned mask;
  Exchange arrived;
};

struct Warp {
  unsigned running = 0;  // the lanes that have not exited
  std::vector<Collective> pending;
};

// The block that runs. Its threads are kept for the next one, which may need fewer.
struct Block {
  std::deque<Thread> threads;
  std::vector<Warp> warps;
  int num_threads = 0;
  int num_exited = 0;
  BarrierVotes barrier_votes;  // of the threads that wait there
  Location barrier;
  std::deque<int> ready;
  std::string error;
};
Block block;
const std::function<void()>* thread_body;

Thread& current_thread() { return block.threads[execution.thread]; }
Warp& warp_of(int thread) { return block.warps[thread / kWarpSize]; }
unsigned lane_bit(int thread) { return 1u << thread % kWarpSize; }

std::string text(Location where) {
  return std::string(where.file_name()) + ":" + std::to_string(where.line());
}

std::string text(const char* what, uint3 index) {
  return std::string(what) + " (" + std::to_string(index.x) + ", " + std::to_string(index.y) +
         ", " + std::to_string(index.z) + ")";
}

bool same_place(Location a, Location b) {
  return a.line() == b.line() && a.column() == b.column() &&
         std::strcmp(a.file_name(), b.file_name()) == 0;
}

void wake(int thread) {
  block.threads[thread].state = State::kReady;
  block.ready.push_back(thread);
}

// Ends the turn of the running thread. What it waits for is looked after by run_block.
void suspend(State state, Location where) {
  current_thread().state = state;
  current_thread().waits_at = where;
  current_thread().fiber.suspend();
}

void release_barrier_if_complete() {
  const bool complete = block.barrier_votes.voters + block.num_exited == block.num_threads;
  if (!complete || block.barrier_votes.voters == 0) return;
  listener.block_synchronised();
  for (int i = 0; i < block.num_threads; ++i) {
    if (block.threads[i].state != State::kAtBarrier) continue;
    block.threads[i].votes = block.barrier_votes;
    wake(i);
  }
  block.barrier_votes = {};
}

// True if the collective is over.
bool release_lanes_if_complete(int warp, const Collective& collective) {
  if (collective.arrived.lanes != (collective.mask & block.warps[warp].running)) return false;
  if (collective.name == "__syncwarp") listener.warp_synchronised(warp, collective.arrived.lanes);
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (!(collective.arrived.lanes >> lane & 1)) continue;
    const int thread = warp * kWarpSize + lane;
    block.threads[thread].exchange = collective.arrived;
    wake(thread);
  }
  return true;
}

void release_complete_lanes(int warp) {
  std::erase_if(block.warps[warp].pending, [=](const Collective& collective) {
    return release_lanes_if_complete(warp, collective);
  });
}

void run_thread_body() {
  (*thread_body)();
  ++block.num_exited;
  warp_of(execution.thread).running &= ~lane_bit(execution.thread);
  suspend(State::kExited, {});
}

// The order of blocks and threads, which a correct kernel does not depend on. EMU_SEED=0, the
// default, runs both by their index. Odd seeds pick any thread that can run; even seeds let some
// warps run far ahead of others.
class Order {
 public:
  void restart() {
    const char* seed = std::getenv("EMU_SEED");
    seed_ = seed ? std::strtoul(seed, nullptr, 10) : 0;
    random_.seed(seed_);
    num_picked_ = 0;
  }

  std::vector<size_t> of_blocks(size_t num_blocks) {
    std::vector<size_t> order(num_blocks);
    std::iota(order.begin(), order.end(), size_t{0});
    if (seed_) std::shuffle(order.begin(), order.end(), random_);
    return order;
  }

  int take_ready_thread() {
    std::swap(block.ready.front(), *pick());
    const int thread = block.ready.front();
    block.ready.pop_front();
    return thread;
  }

 private:
  std::deque<int>::iterator pick() {
    if (seed_ == 0) return block.ready.begin();
    if (seed_ % 2 == 1) return block.ready.begin() + random_() % block.ready.size();
    if (num_picked_++ % 512 == 0)
      std::generate(priority_.begin(), priority_.end(), std::ref(random_));
    return std::max_element(block.ready.begin(), block.ready.end(), [this](int a, int b) {
      return priority_[a / kWarpSize] < priority_[b / kWarpSize];
    });
  }

  unsigned long seed_ = 0;
  std::mt19937_64 random_;
  uint64_t num_picked_ = 0;
  std::array<uint64_t, 32> priority_;  // of warps
};
Order order;

// This library's thread-local storage in the calling thread, which holds the __shared__ variables
// and nothing else. Looked up at every launch, as each thread has its own.
Range find_shared_memory() {
  smem_raw[0] = 0;  // the loader allocates the storage of a dlopen'ed library at its first use
  const auto dynamic = reinterpret_cast<uintptr_t>(smem_raw);
  Range found{dynamic, 0};
  dl_iterate_phdr(
      [](dl_phdr_info* module, size_t, void* result) {
        Range& found = *static_cast<Range*>(result);
        for (int i = 0; i < module->dlpi_phnum; ++i) {
          if (module->dlpi_phdr[i].p_type != PT_TLS) continue;
          const Range storage{reinterpret_cast<uintptr_t>(module->dlpi_tls_data),
                              module->dlpi_phdr[i].p_memsz};
          if (!storage.contains(found.begin)) continue;
          found = storage;
          return 1;
        }
        return 0;
      },
      &found);
  if (found.size == 0) throw std::runtime_error("the emulator cannot find its shared memory");
  return found;
}

void reset_shared_memory() {
  void* shared = reinterpret_cast<void*>(execution.shared_memory.begin);
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(shared, execution.shared_memory.size);
#endif
  std::memset(shared, kUninitialised, execution.shared_memory.size);
#ifdef __SANITIZE_ADDRESS__
  __asan_poison_memory_region(smem_raw + execution.dynamic_bytes,
                              kDynamicBytes - execution.dynamic_bytes);
#endif
}

void check_guard() {
#ifndef __SANITIZE_ADDRESS__
  const unsigned char* end = smem_raw + execution.dynamic_bytes;
  const auto untouched = [](unsigned char byte) { return byte == kUninitialised; };
  if (std::all_of(end, end + kGuardBytes, untouched)) return;
  fail("dynamic shared memory written past its " + std::to_string(execution.dynamic_bytes) +
       " bytes in " + text("block", blockIdx));
#endif
}

[[noreturn]] void fail_of_deadlock() {
  std::string message = "deadlock in " + text("block", blockIdx) + ": " +
                        std::to_string(block.num_exited) + " of " +
                        std::to_string(block.num_threads) + " threads have exited";
  std::vector<Location> places;
  for (int i = 0; i < block.num_threads; ++i) {
    const Thread& thread = block.threads[i];
    const auto here = [&](Location place) { return same_place(place, thread.waits_at); };
    if (thread.state == State::kExited || std::ranges::any_of(places, here)) continue;
    places.push_back(thread.waits_at);
    message += std::string(", ") + text("thread", thread.index) + " waits in a " +
               (thread.state == State::kAtBarrier ? "barrier" : "warp collective") + " at " +
               text(thread.waits_at);
  }
  fail(message);
}

uint3 unflatten(size_t i, dim3 extent) {
  return {static_cast<unsigned>(i % extent.x), static_cast<unsigned>(i / extent.x % extent.y),
          static_cast<unsigned>(i / extent.x / extent.y)};
}

void start_block() {
  reset_shared_memory();
  block.num_exited = 0;
  block.barrier_votes = {};
  block.ready.clear();
  block.error.clear();
  block.warps.assign((block.num_threads + kWarpSize - 1) / kWarpSize, {});
  for (int i = 0; i < block.num_threads; ++i) {
    block.threads[i].index = unflatten(i, blockDim);
    block.threads[i].fiber.start(run_thread_body);
    warp_of(i).running |= lane_bit(i);
    wake(i);
  }
  listener.block_begins(block.num_threads);
}

void run_thread(int i) {
  execution.thread = i;
  execution.stack = current_thread().fiber.stack();
  threadIdx = current_thread().index;
  current_thread().fiber.resume();
  execution.thread = -1;
  if (!block.error.empty()) throw std::runtime_error(block.error);
}

void run_block() {
  start_block();
  while (block.num_exited < block.num_threads) {
    if (block.ready.empty()) fail_of_deadlock();
    const int thread = order.take_ready_thread();
    run_thread(thread);
    release_barrier_if_complete();
    release_complete_lanes(thread / kWarpSize);
  }
  check_guard();
}

}  // namespace

void run_grid(dim3 grid, dim3 block_size, size_t dynamic_bytes, const std::function<void()>& body) {
  static std::atomic_flag busy;
  if (busy.test_and_set()) {
    throw std::runtime_error("a launch while another runs: the emulator is single-threaded");
  }
  const struct Release {
    ~Release() { busy.clear(); }
  } release;

  execution = {.shared_memory = find_shared_memory(), .dynamic_bytes = dynamic_bytes};
  thread_body = &body;
  gridDim = grid;
  blockDim = block_size;
  block.num_threads = static_cast<int>(block_size.x * block_size.y * block_size.z);
  while (block.threads.size() < static_cast<size_t>(block.num_threads)) {
    block.threads.emplace_back();
  }
  order.restart();
  listener.launch_begins();
  for (size_t i : order.of_blocks(static_cast<size_t>(grid.x) * grid.y * grid.z)) {
    blockIdx = unflatten(i, gridDim);
    run_block();
  }
}

void fail(const std::string& message) {
  if (execution.thread < 0) throw std::runtime_error(message);
  // No exception can leave a fiber: the scheduler throws it.
  block.error = message + " [" + text("block", blockIdx) + ", " + text("thread", threadIdx) + "]";
  current_thread().fiber.suspend();
  std::abort();
}

BarrierVotes sync_block(bool vote, Location where) {
  if (block.barrier_votes.voters > 0 && !same_place(where, block.barrier)) {
    fail("divergent __syncthreads at " + text(block.barrier) + " and " + text(where));
  }
  block.barrier = where;
  block.barrier_votes.in_favour += vote;
  ++block.barrier_votes.voters;
  suspend(State::kAtBarrier, where);
  return current_thread().votes;
}

const Exchange& sync_lanes(const char* name, unsigned mask, uint64_t value, Location where) {
  const int thread = execution.thread;
  const int lane = thread % kWarpSize;
  if (!(mask & lane_bit(thread))) {
    fail(std::string(name) + " at " + text(where) + ": lane " + std::to_string(lane) +
         " is not in its own mask");
  }
  std::vector<Collective>& pending = warp_of(thread).pending;
  auto collective = std::find_if(pending.begin(), pending.end(),
                                 [=](const Collective& c) { return c.mask == mask; });
  if (collective == pending.end()) {
    collective = pending.insert(pending.end(), {name, mask, {}});
    collective->arrived.values.fill(~uint64_t{0});
  }
  if (collective->name != name) {
    fail("divergent warp collectives: " + std::string(collective->name) + " meets " + name +
         " at " + text(where));
  }
  collective->arrived.lanes |= lane_bit(thread);
  collective->arrived.values[lane] = value;
  suspend(State::kInCollective, where);
  return current_thread().exchange;
}

AtomicScope::AtomicScope() { execution.in_atomic = true; }
AtomicScope::~AtomicScope() { execution.in_atomic = false; }

}  // namespace cuda_emulation
