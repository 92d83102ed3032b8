// Dynamic shared memory beyond what every launch may have. No torch headers: .cu files include
// this.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>

namespace ssept::cuda {

// To be called before the launch of a kernel that has no static shared memory, for `bytes` of
// dynamic shared memory on the current device. Throws std::runtime_error, which names `op`, where
// the device has less.
cudaError_t allow_shared_memory(const void* kernel, const char* op, size_t bytes);

}  // namespace ssept::cuda
