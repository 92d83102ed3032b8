// What the glue between torch and the kernels needs from either: the current stream, checked
// launches, types.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>

#include <utility>

#include "common/dtype.h"
#include "cuda/bad_id.h"
#include "cuda/products.h"

namespace ssept::cuda {

inline void check_cuda(const char* op, cudaError_t error) {
  check<std::runtime_error>(error == cudaSuccess, op, ": CUDA error: ", cudaGetErrorString(error));
}

// Makes a tensor's device the current one for as long as this lives.
class DeviceOf {
 public:
  explicit DeviceOf(const Tensor& x) : index_(x.get_device_index()) {
    if (x.is_cuda()) guard_.emplace(index_);
  }
  // The stream torch queues work on.
  cudaStream_t stream() const;
  const Products& products() const;
  BadIdNote* note() const { return bad_id_note(index_); }

 private:
  int index_;
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
};

template <class F>
void dispatch_floating(const char* name, ScalarType type, F&& f) {
  ssept::dispatch_floating<__half, __nv_bfloat16>(name, type, std::forward<F>(f));
}

}  // namespace ssept::cuda
