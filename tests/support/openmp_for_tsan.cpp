// Shows ThreadSanitizer where the threads of OpenMP part and meet: libgomp is not instrumented, and
// waits by futexes, which TSan does not see. To be preloaded, so that torch's parallel regions
// start here.
#include <dlfcn.h>

extern "C" {
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}

namespace {

struct Region {
  void (*body)(void*);
  void* data;
};

// Two addresses, so that a thread that starts late is not taken to wait for one that has ended.
void* parting(Region& region) { return &region.body; }
void* meeting(Region& region) { return &region.data; }

void run(void* pointer) {
  Region& region = *static_cast<Region*>(pointer);
  __tsan_acquire(parting(region));
  region.body(region.data);
  __tsan_release(meeting(region));
}

}  // namespace

extern "C" [[gnu::visibility("default")]] void GOMP_parallel(void (*body)(void*), void* data,
                                                             unsigned num_threads, unsigned flags) {
  // Not RTLD_NEXT: Python loads torch, and libgomp with it, outside of the global scope.
  static const auto original = reinterpret_cast<decltype(&GOMP_parallel)>(
      dlsym(dlopen("libgomp.so.1", RTLD_LAZY | RTLD_NOLOAD), "GOMP_parallel"));
  Region region{body, data};
  __tsan_release(parting(region));
  original(run, &region, num_threads, flags);
  __tsan_acquire(meeting(region));
}
