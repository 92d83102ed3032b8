// Where ops are registered: the package's own namespace, or, when the CUDA sources are compiled for
// the CPU emulation of the tests, a namespace of the emulation's, where the CUDA kernels stand
// under the CPU's key.
#pragma once
#include <torch/csrc/stable/library.h>

#ifdef SSEPT_CUDA_EMULATION
#define SSEPT_LIBRARY(m) STABLE_TORCH_LIBRARY(ssept_emulated, m)
#define SSEPT_LIBRARY_IMPL(key, m) STABLE_TORCH_LIBRARY_IMPL(ssept_emulated, key, m)
#define SSEPT_CUDA_KEY CPU
#else
#define SSEPT_LIBRARY(m) STABLE_TORCH_LIBRARY(ssept_ext, m)
#define SSEPT_LIBRARY_IMPL(key, m) STABLE_TORCH_LIBRARY_IMPL(ssept_ext, key, m)
#define SSEPT_CUDA_KEY CUDA
#endif
