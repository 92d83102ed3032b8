// Finds races between CUDA threads, uninitialised shared memory, and accesses outside of the
// dynamic shared memory. The .cu files are compiled with -fsanitize=thread for nothing but its
// calls at every load and store, which arrive here instead of in libtsan.
//
// Order between two accesses (happens-before): __syncthreads orders the block; __syncwarp orders
// its lanes; launches are ordered; nothing orders two blocks of a launch. Shuffles, votes and
// fences order no memory. Atomic operations race with plain accesses, not with each other.
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <sstream>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "emulation/emulator.h"

namespace {

using namespace cuda_emulation;

struct Access {
  uint32_t block = 0;  // counted over all launches; no block has number 0
  uint32_t epoch = 0;  // the barriers the block has passed
  uint32_t clock = 0;  // the __syncwarps the thread has passed
  uint16_t thread = 0;
  const void* instruction = nullptr;
};

// The last accesses to one unit of memory.
struct History {
  Access write;
  Access atomic;
  Access read;
  Access concurrent_read;  // one more, not ordered with the first
};

// Of units that no access yet took a part of: every byte of one has the same history.
class Page {
 public:
  static constexpr size_t kSize = 1024;
  static constexpr size_t kLargestUnit = 16;

  void split(size_t unit) {
    std::vector<History> parts;
    for (const History& whole : histories_) parts.insert(parts.end(), unit_ / unit, whole);
    histories_ = std::move(parts);
    unit_ = unit;
  }
  size_t unit() const { return unit_; }
  History& at(uintptr_t address) { return histories_[address % kSize / unit_]; }

 private:
  size_t unit_ = kLargestUnit;  // in bytes, a power of two
  std::vector<History> histories_ = std::vector<History>(kSize / kLargestUnit);
};

uint32_t first_block_of_launch = 0;
uint32_t num_blocks = 0;
uint32_t epoch = 0;
// Vector clocks: thread t comes after all that lane l of its warp did up to its clock's
// clocks[t][l].
std::vector<std::array<uint32_t, kWarpSize>> clocks;

Page& page_of(uintptr_t address) {
  static std::unordered_map<uintptr_t, Page> pages;
  static std::array<std::pair<uintptr_t, Page*>, 256> recent;  // by the last bits of their number
  const uintptr_t number = address / Page::kSize;
  auto& [found, page] = recent[number % recent.size()];
  if (!page || found != number) {
    found = number;
    page = &pages[number];
  }
  return *page;
}

// "file:line" of the instruction before a return address.
std::string source_line(const void* return_address) {
  Dl_info library;
  if (!dladdr(return_address, &library)) return "?";
  const auto* instruction = static_cast<const char*>(return_address) - 1;
  const size_t offset = instruction - static_cast<const char*>(library.dli_fbase);
  std::ostringstream command;
  command << "addr2line --inlines -e '" << library.dli_fname << "' 0x" << std::hex << offset;
  FILE* lines = popen(command.str().c_str(), "r");
  if (!lines) return "?";
  // Innermost first. The kernel's own line is wanted, not that in our atomicAdd.
  std::string line;
  char buffer[4096];
  while (std::fgets(buffer, sizeof buffer, lines)) {
    line = buffer;
    if (line.find("include/emulation/") == line.npos) break;
  }
  pclose(lines);
  return line.substr(0, line.find_first_of(" \n"));
}

bool ordered(const Access& before, const Access& now, bool shared) {
  if (before.block < first_block_of_launch) return true;
  if (before.block != now.block) return shared;  // not the same memory: each block has its own
  if (before.thread == now.thread || before.epoch < now.epoch) return true;
  const bool same_warp = before.thread / kWarpSize == now.thread / kWarpSize;
  return same_warp && clocks[now.thread][before.thread % kWarpSize] >= before.clock;
}

std::string text(const Access& access) {
  return "thread " + std::to_string(access.thread) + " of block #" +
         std::to_string(access.block - first_block_of_launch) + " at " +
         source_line(access.instruction);
}

void check_order(const Access& before, const Access& now, bool shared, const char* kind) {
  if (ordered(before, now, shared)) return;
  fail(std::string("race on ") + (shared ? "shared" : "global") + " memory (" + kind +
       "): " + text(before) + " and " + text(now));
}

void check_bounds(uintptr_t address, size_t size, bool write, const void* instruction) {
  const size_t offset = address - reinterpret_cast<uintptr_t>(smem_raw);
  const bool dynamic = offset < kMaxDynamicBytes + kGuardBytes;
  if (!dynamic || offset + size <= execution.dynamic_bytes) return;
  fail(std::string(write ? "write" : "read") + " of " + std::to_string(size) + " bytes at offset " +
       std::to_string(offset) + " of " + std::to_string(execution.dynamic_bytes) +
       " bytes of dynamic shared memory at " + source_line(instruction));
}

void check_read(History& last, const Access& now, bool shared) {
  check_order(last.write, now, shared, "write, then read");
  check_order(last.atomic, now, shared, "atomic, then read");
  (ordered(last.read, now, shared) ? last.read : last.concurrent_read) = now;
}

void check_write(History& last, const Access& now, bool shared) {
  check_order(last.write, now, shared, "write, then write");
  check_order(last.atomic, now, shared, "atomic, then write");
  check_order(last.read, now, shared, "read, then write");
  check_order(last.concurrent_read, now, shared, "read, then write");
  last = {.write = now};  // who races with what came before also races with this
}

void check_atomic(History& last, const Access& now, bool shared) {
  check_order(last.write, now, shared, "write, then atomic");
  check_order(last.read, now, shared, "read, then atomic");
  check_order(last.concurrent_read, now, shared, "read, then atomic");
  last.atomic = now;
}

void check_access(void* pointer, size_t size, bool write, const void* instruction) {
  const auto begin = reinterpret_cast<uintptr_t>(pointer);
  const int thread = execution.thread;
  if (thread < 0 || execution.stack.contains(begin)) return;
  check_bounds(begin, size, write, instruction);
  const Access now{.block = num_blocks,
                   .epoch = epoch,
                   .clock = clocks[thread][thread % kWarpSize],
                   .thread = static_cast<uint16_t>(thread),
                   .instruction = instruction};
  const bool shared = execution.shared_memory.contains(begin);
  const size_t aligned_to = (begin | size) & -(begin | size);
  for (uintptr_t address = begin; address < begin + size;) {
    Page& page = page_of(address);
    if (page.unit() > aligned_to) page.split(aligned_to);
    History& last = page.at(address);
    if (shared && !write && last.write.block != now.block) {
      fail("read of uninitialised shared memory at " + source_line(instruction));
    }
    if (execution.in_atomic) {
      check_atomic(last, now, shared);
    } else if (write) {
      check_write(last, now, shared);
    } else {
      check_read(last, now, shared);
    }
    address += page.unit();
  }
}

void begin_launch() { first_block_of_launch = num_blocks + 1; }

void begin_block(int num_threads) {
  ++num_blocks;
  epoch = 0;
  clocks.assign(num_threads, {});
  for (int i = 0; i < num_threads; ++i) clocks[i][i % kWarpSize] = 1;
}

void synchronise_block() { ++epoch; }

void synchronise_warp(int warp, unsigned lanes) {
  std::array<uint32_t, kWarpSize> latest{};
  const auto for_each_lane = [&](auto&& f) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      if (lanes >> lane & 1) f(lane, clocks[warp * kWarpSize + lane]);
    }
  };
  for_each_lane([&](int, const auto& clock) {
    std::ranges::transform(latest, clock, latest.begin(),
                           [](uint32_t a, uint32_t b) { return std::max(a, b); });
  });
  for_each_lane([&](int lane, auto& clock) {
    clock = latest;
    ++clock[lane];
  });
}

const bool listening = [] {
  listener = {begin_launch, begin_block, synchronise_block, synchronise_warp};
  return true;
}();

}  // namespace

// The functions that the compiler calls. Macros, as extern "C" names cannot be made by templates.
#define DEFINE_ACCESS(name, size, write)                             \
  extern "C" void __tsan_##name(void* address) {                     \
    check_access(address, size, write, __builtin_return_address(0)); \
  }
#define DEFINE_ACCESSES(size)                      \
  DEFINE_ACCESS(read##size, size, false)           \
  DEFINE_ACCESS(write##size, size, true)           \
  DEFINE_ACCESS(unaligned_read##size, size, false) \
  DEFINE_ACCESS(unaligned_write##size, size, true)
DEFINE_ACCESSES(1)
DEFINE_ACCESSES(2)
DEFINE_ACCESSES(4)
DEFINE_ACCESSES(8)
DEFINE_ACCESSES(16)
extern "C" void __tsan_read_range(void* address, size_t size) {
  check_access(address, size, false, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(void* address, size_t size) {
  check_access(address, size, true, __builtin_return_address(0));
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
