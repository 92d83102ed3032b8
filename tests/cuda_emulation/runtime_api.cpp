// The functions of CUDA's runtime library that our launchers and op glue call.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>

#include "emulation/emulator.h"

namespace cuda_emulation {
namespace {

cudaError_t last_error = cudaSuccess;
int64_t num_launches = 0;
std::unordered_map<const void*, size_t> dynamic_limits;  // of the kernels that have opted in

cudaError_t failed(cudaError_t error) { return last_error = error; }

bool valid_grid(dim3 grid) {
  return grid.x > 0 && grid.y > 0 && grid.z > 0 &&  //
         grid.x <= 0x7fffffff && grid.y <= 0xffff && grid.z <= 0xffff;
}

bool valid_block(dim3 block) {
  const size_t num_threads = size_t{1} * block.x * block.y * block.z;
  return num_threads > 0 && num_threads <= 1024 && block.z <= 64;
}

}  // namespace

size_t max_dynamic_bytes() {
  const char* setting = std::getenv("EMU_SHARED_MEMORY");
  if (setting == nullptr) return kMaxDynamicBytes;
  const size_t bytes = std::strtoul(setting, nullptr, 10);
  if (bytes >= kDefaultDynamicBytes && bytes <= kMaxDynamicBytes) return bytes;
  throw std::runtime_error("EMU_SHARED_MEMORY must be in " + std::to_string(kDefaultDynamicBytes) +
                           ".." + std::to_string(kMaxDynamicBytes) + ", got " + setting);
}

cudaError_t launch(const void* kernel, const cudaLaunchConfig_t& config,
                   const std::function<void()>& thread_body) {
  if (!valid_grid(config.gridDim) || !valid_block(config.blockDim)) {
    return failed(cudaErrorInvalidConfiguration);
  }
  const auto limit = dynamic_limits.try_emplace(kernel, kDefaultDynamicBytes).first->second;
  if (config.dynamicSmemBytes > limit) return failed(cudaErrorInvalidValue);
  ++num_launches;
  run_grid(config.gridDim, config.blockDim, config.dynamicSmemBytes, thread_body);
  return cudaSuccess;
}

}  // namespace cuda_emulation

// Of all kernels so far, for tests that count them.
extern "C" __attribute__((visibility("default"))) int64_t emulated_launches() {
  return cuda_emulation::num_launches;
}

// A kernel of torch's, in the place of which torch computes on the CPU.
extern "C" void count_emulated_launch() { ++cuda_emulation::num_launches; }

using cuda_emulation::failed;
using cuda_emulation::last_error;

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || static_cast<size_t>(value) > cuda_emulation::max_dynamic_bytes()) {
    return failed(cudaErrorInvalidValue);
  }
  const auto limit = static_cast<size_t>(value);
  cuda_emulation::dynamic_limits[kernel] = std::max(limit, cuda_emulation::kDefaultDynamicBytes);
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (attribute != cudaDevAttrMaxSharedMemoryPerBlockOptin || device != 0)
    return failed(cudaErrorInvalidValue);
  *value = static_cast<int>(cuda_emulation::max_dynamic_bytes());
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t size, cudaStream_t) {
  std::memset(memory, value, size);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, size);
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** memory, size_t size, unsigned int) {
  *memory = std::malloc(size);
  return *memory ? cudaSuccess : failed(cudaErrorMemoryAllocation);
}

cudaError_t cudaFreeHost(void* memory) {
  std::free(memory);
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    default:
      return "an error that the emulation has no name for";
  }
}
