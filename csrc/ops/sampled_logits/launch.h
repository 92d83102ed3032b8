// Launchers of the `sampled_logits` and `sampled_loss` kernels, for T in float, double, __half,
// __nv_bfloat16. They queue work on `stream`, never wait, and return the first error.
#pragma once
#include <cuda_runtime_api.h>

#include "common/accumulator.h"
#include "cuda/bad_id.h"
#include "ops/sampled_logits/params.h"

namespace ssept::cuda {

template <class T>
struct SampledLogitsKernels {
  using A = Accumulator<T>;

  // The logits or, with `loss`, the gradient of each token's loss. The latter also fills in the
  // items, `logits`, which may be `out`, and `losses`: of each token its loss, and 1 where it has a
  // target.
  static cudaError_t forward(const SampledLogits<T>& in, const SampledLoss<A>* loss, T* out,
                             A* logits, A* losses, BadIdNote* note, cudaStream_t stream);

  // The mean loss of the tokens that have a target, and 1 / their number, at most 1.
  static cudaError_t mean(const A* losses, int64_t num_tokens, A* mean, A* inverse_count,
                          cudaStream_t stream);

  // grad_logits is multiplied by grad_loss and inverse_count, unless these are null. item_order:
  // stable argsort of the items, for sums in a fixed order, or null. grad_item and grad_user, null
  // without users, must be zero on entry; grad_sum is scratch of N elements.
  static cudaError_t backward(const SampledLogits<T>& in, const T* grad_logits, const A* grad_loss,
                              const A* inverse_count, const int64_t* item_order, T* grad_hidden,
                              A* grad_item, A* grad_user, A* grad_sum, BadIdNote* note,
                              cudaStream_t stream);
};

}  // namespace ssept::cuda
