// Launchers of the `sampled_logits` kernels, for T in float, double, __half, __nv_bfloat16. They
// queue work on `stream`, never wait, and return the first error.
#pragma once
#include <cuda_runtime_api.h>

#include "common/accumulator.h"
#include "cuda/bad_id.h"
#include "ops/sampled_logits/params.h"

namespace ssept::cuda {

template <class T>
struct SampledLogitsKernels {
  using A = Accumulator<T>;

  static cudaError_t forward(const SampledLogits<T>& in, T* logits, BadIdNote* note,
                             cudaStream_t stream);

  // item_order: stable argsort of the items, for sums in a fixed order, or null. grad_item and
  // grad_user, null without users, must be zero on entry; grad_sum is scratch of N elements.
  static cudaError_t backward(const SampledLogits<T>& in, const T* grad_logits,
                              const int64_t* item_order, T* grad_hidden, A* grad_item, A* grad_user,
                              A* grad_sum, BadIdNote* note, cudaStream_t stream);
};

}  // namespace ssept::cuda
