#include "cuda/runtime.h"

#include <dlfcn.h>

#include <array>
#include <atomic>
#include <mutex>
#include <set>

#include "common/library.h"
#include "cuda/shared_memory.h"

#ifdef SSEPT_CUDA_EMULATION
extern "C" void count_emulated_launch();
#endif

namespace ssept::cuda {

#ifdef SSEPT_CUDA_EMULATION
cudaStream_t DeviceOf::stream() const { return nullptr; }
const Products& DeviceOf::products() const {
  // Of a product with a bias, a profile sees the copy of the bias that torch begins with on a CPU.
  static constexpr Products counted{
      [](auto... x) { return count_emulated_launch(), aoti_torch_cpu_mm_out(x...); },
      [](auto out, auto self, auto... x) {
        if (out == self) count_emulated_launch();
        return aoti_torch_cpu_addmm_out(out, self, x...);
      },
      [](auto... x) { return count_emulated_launch(), aoti_torch_cpu_bmm_out(x...); }};
  return counted;
}
#else
namespace {

// In every torch since 2.11, but in a library that CPU builds lack: found at run time, or not at
// all.
template <class Function>
Function find_in_torch(const char* name) {
  void* library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD);
  return reinterpret_cast<Function>(library ? dlsym(library, name) : nullptr);
}

}  // namespace

cudaStream_t DeviceOf::stream() const {
  using GetStream = int32_t (*)(int32_t, void**);
  static const auto get_stream = find_in_torch<GetStream>("aoti_torch_get_current_cuda_stream");
  void* stream = nullptr;
  check<std::runtime_error>(get_stream != nullptr && get_stream(index_, &stream) == 0,
                            "this torch gives no CUDA stream for device ", index_);
  return static_cast<cudaStream_t>(stream);
}

const Products& DeviceOf::products() const {
  static const Products products{
      find_in_torch<decltype(Products::mm_out)>("aoti_torch_cuda_mm_out"),
      find_in_torch<decltype(Products::addmm_out)>("aoti_torch_cuda_addmm_out"),
      find_in_torch<decltype(Products::bmm_out)>("aoti_torch_cuda_bmm_out")};
  check<std::runtime_error>(products.mm_out && products.addmm_out && products.bmm_out,
                            "this torch gives no products of matrices for device ", index_);
  return products;
}
#endif

cudaError_t allow_shared_memory(const void* kernel, const char* op, size_t bytes) {
  constexpr size_t kAlwaysAllowed = 48 << 10;
  if (bytes <= kAlwaysAllowed) return cudaSuccess;
  int device = 0, limit = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return error;
  }
  check<std::runtime_error>(bytes <= static_cast<size_t>(limit), op, ": a kernel needs ", bytes,
                            " bytes of shared memory in a block, but CUDA device ", device, " has ",
                            limit);
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> allowed;  // kernels and devices
  const std::lock_guard lock(mutex);
  if (allowed.contains({kernel, device})) return cudaSuccess;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limit);
  if (error == cudaSuccess)
    allowed.insert({kernel, device});
  else
    cudaGetLastError();
  return error;
}

namespace {

constexpr int kMaxDevices = 64;

// All devices' notes, in host memory that every device can write. Null until a first kernel asked.
using Notes = std::array<BadIdNote, kMaxDevices>;
std::atomic<Notes*> notes = nullptr;

}  // namespace

BadIdNote* bad_id_note(int device_index) {
  check(device_index < kMaxDevices, "at most ", kMaxDevices, " devices are supported, got device ",
        device_index);
  static std::once_flag once;
  std::call_once(once, [] {
    void* memory = nullptr;
    check_cuda("cudaHostAlloc",
               cudaHostAlloc(&memory, sizeof(Notes), cudaHostAllocPortable | cudaHostAllocMapped));
    notes = new (memory) Notes{};
  });
  return &(*notes.load())[device_index < 0 ? 0 : device_index];
}

namespace {

// Throws what kernels have noted since the last call, on any device. Does not wait for them.
void raise_pending_errors() {
  Notes* const all = notes.load();
  if (all == nullptr) return;
  for (BadIdNote& note : *all) {
    // Of several host threads, the one that resets `ready` reads the note. A device writes the rest
    // before `ready`, and nothing until `claimed` is reset.
    if (__atomic_exchange_n(&note.ready, 0, __ATOMIC_ACQUIRE) == 0) continue;
    const BadIdNote copy = note;
    __atomic_store_n(&note.claimed, 0, __ATOMIC_RELEASE);
    if (copy.argument == IdArgument::kOrder) check_ascending("ids", copy.table_rows, copy.id);
    constexpr std::array kNames = {"items",     "users",      "positions",  "ids",    "positives",
                                   "negatives", "seen_items", "candidates", "targets"};
    // as in IdArgument
    throw_bad_id(kNames[static_cast<size_t>(copy.argument)], copy.id, copy.table_rows);
  }
}

}  // namespace
}  // namespace ssept::cuda

SSEPT_LIBRARY_IMPL(CompositeExplicitAutograd, m) {
  m.impl("raise_pending_errors", TORCH_BOX(&ssept::cuda::raise_pending_errors));
}
