// A torch op around a kernel with a bug, to see its message arrive in Python.
#include <cuda_runtime.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

extern "C" void divergent_barriers(float* data);

namespace {

void run_divergent_barriers(const torch::stable::Tensor& data) {
  cudaLaunchConfig_t config{};
  config.gridDim = 1;
  config.blockDim = 64;
  cudaLaunchKernelEx(&config, divergent_barriers, data.mutable_data_ptr<float>());
}

}  // namespace

STABLE_TORCH_LIBRARY(cuda_emulation_test, m) { m.def("divergent_barriers(Tensor data) -> ()"); }
STABLE_TORCH_LIBRARY_IMPL(cuda_emulation_test, CPU, m) {
  m.impl("divergent_barriers", TORCH_BOX(&run_divergent_barriers));
}
