// A thread of execution that runs only when it is resumed, and until it suspends itself.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#include "emulation/emulator.h"

#if !defined(__x86_64__) || defined(SSEPT_EMULATION_UCONTEXT)
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_emulation {

#if defined(__x86_64__) && !defined(SSEPT_EMULATION_UCONTEXT)

// Several times faster than ucontext, which makes a system call for every switch.
struct Context {
  void* stack_pointer = nullptr;
};

// Saves the registers a function must preserve, and the stack pointer; takes those of another
// context.
__attribute__((naked, noinline)) inline void switch_stack(void** /*save*/, void* /*resume*/) {
  asm volatile(
      "pushq %rbp\n"
      "pushq %rbx\n"
      "pushq %r12\n"
      "pushq %r13\n"
      "pushq %r14\n"
      "pushq %r15\n"
      "movq %rsp, (%rdi)\n"
      "movq %rsi, %rsp\n"
      "popq %r15\n"
      "popq %r14\n"
      "popq %r13\n"
      "popq %r12\n"
      "popq %rbx\n"
      "popq %rbp\n"
      "ret\n");
}

inline void switch_context(Context& from, Context& to) {
  switch_stack(&from.stack_pointer, to.stack_pointer);
}

inline void prepare_context(Context& context, char* stack, size_t size, void (*entry)()) {
  constexpr int kSavedRegisters = 6;
  void** top = reinterpret_cast<void**>(stack + size);
  *--top = nullptr;  // entry's return address: it never returns
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
  context.stack_pointer = top;
}

#else

using Context = ucontext_t;

inline void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }

inline void prepare_context(Context& context, char* stack, size_t size, void (*entry)()) {
  getcontext(&context);
  context.uc_stack = {.ss_sp = stack, .ss_flags = 0, .ss_size = size};
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}

#endif

// One stack, as ASan must be told of every change of it. Does nothing in builds without ASan.
struct AsanStack {
  const void* bottom = nullptr;
  size_t size = 0;
  void* fake_stack = nullptr;

#ifdef __SANITIZE_ADDRESS__
  void leave_for(const AsanStack& next) {
    __sanitizer_start_switch_fiber(&fake_stack, next.bottom, next.size);
  }
  // Also learns where the stack lies that was left.
  void come_back(AsanStack& previous) {
    __sanitizer_finish_switch_fiber(fake_stack, &previous.bottom, &previous.size);
  }
  void make_fresh() {
    fake_stack = nullptr;
    __asan_unpoison_memory_region(bottom, size);
  }
#else
  void leave_for(const AsanStack&) {}
  void come_back(AsanStack&) {}
  void make_fresh() {}
#endif
};

class Fiber {
 public:
  // The stack is never given back: the fiber is for reuse, until the process ends.
  Fiber() {
    void* memory = mmap(nullptr, kGuard + kStack, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, kGuard, PROT_NONE);  // an overflow crashes, instead of reaching the next stack
    stack_ = static_cast<char*>(memory) + kGuard;
    asan_.bottom = stack_;
    asan_.size = kStack;
  }
  Fiber(const Fiber&) = delete;

  // The next resume() will call `entry`, which must not return. What ran before is abandoned.
  void start(void (*entry)()) {
    entry_ = entry;
    asan_.make_fresh();
    prepare_context(context_, stack_, kStack, first_steps);
  }

  // Runs the fiber until it suspends itself.
  void resume() {
    running_ = this;
    resumer_asan_.leave_for(asan_);
    switch_context(resumer_, context_);
    resumer_asan_.come_back(asan_);
  }

  // For the running fiber only: goes back to who resumed it.
  void suspend() {
    asan_.leave_for(resumer_asan_);
    switch_context(context_, resumer_);
    asan_.come_back(resumer_asan_);
  }

  Range stack() const { return {reinterpret_cast<uintptr_t>(stack_), kStack}; }

 private:
  static constexpr size_t kGuard = 4096;
  static constexpr size_t kStack = 256 << 10;

  static void first_steps() {
    running_->asan_.come_back(running_->resumer_asan_);
    running_->entry_();
    std::abort();
  }

  static inline Fiber* running_ = nullptr;

  char* stack_;
  void (*entry_)() = nullptr;
  Context context_;
  Context resumer_;
  AsanStack asan_;
  AsanStack resumer_asan_;
};

}  // namespace cuda_emulation
