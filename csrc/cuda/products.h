// Products of matrices by torch's own kernels, into memory that is given. They are called past
// torch's dispatcher, whose stable interface has no way to pass a Scalar: autocast and autograd do
// not see them.
#pragma once
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "common/checks.h"

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // the headers of torch 2.11 have it under its older name
                                       // only
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace ssept::cuda {

// The calls for one type of device: GPUs, or CPUs where the tests' emulation runs.
struct Products {
  decltype(&aoti_torch_cpu_mm_out) mm_out;
  decltype(&aoti_torch_cpu_addmm_out) addmm_out;
  decltype(&aoti_torch_cpu_bmm_out) bmm_out;

  // out = a · b
  void multiply(const Tensor& out, const Tensor& a, const Tensor& b) const {
    STABLE_TORCH_ERROR_CODE_CHECK(mm_out(out.get(), a.get(), b.get()));
  }
  // out += a · b
  void add_product(const Tensor& out, const Tensor& a, const Tensor& b) const {
    STABLE_TORCH_ERROR_CODE_CHECK(addmm_out(out.get(), out.get(), a.get(), b.get(), 1, 1));
  }
  // out = a · b + bias, for every row
  void multiply_add(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& bias) const {
    STABLE_TORCH_ERROR_CODE_CHECK(addmm_out(out.get(), bias.get(), a.get(), b.get(), 1, 1));
  }
  // out = aᵀ · b of each part of the rows, (parts, columns of a, columns of b).
  void multiply_parts(const Tensor& out, const Tensor& a, const Tensor& b) const {
    const auto parts_of = [&](const Tensor& x) {
      return torch::stable::view(x, {out.size(0), x.size(0) / out.size(0), x.size(1)});
    };
    const Tensor left = torch::stable::transpose(parts_of(a), 1, 2), right = parts_of(b);
    STABLE_TORCH_ERROR_CODE_CHECK(bmm_out(out.get(), left.get(), right.get()));
  }
};

inline Tensor transposed(const Tensor& x) { return torch::stable::transpose(x, 0, 1); }

}  // namespace ssept::cuda
