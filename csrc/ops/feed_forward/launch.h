// Launchers of the `feed_forward` kernels, for T in float, double, __half, __nv_bfloat16. They
// queue work on `stream`, never wait, and return the first error.
#pragma once
#include <cuda_runtime_api.h>

#include "common/accumulator.h"
#include "common/row_norm.h"
#include "cuda/parts.h"
#include "ops/feed_forward/params.h"

namespace ssept::cuda {

// What stands between the products of `feed_forward`.
template <class T>
struct FeedForwardKernels {
  using A = Accumulator<T>;

  // After a product, in its place; and the norm of that.
  static cudaError_t finish(const BiasDropout<T>& in, const ResultNorm<T>& norm, T* x,
                            cudaStream_t stream);

  // Before the products of the backward: grad_x may be grad. Copies grad to `copy`, unless that is
  // null, and adds up grad_x, for each part of the rows, in part_sums: (parts, C) of rows of
  // `part_row` elements.
  static cudaError_t start(const BiasDropoutBackward<T>& in, const T* grad, T* grad_x, T* copy,
                           A* part_sums, int64_t part_row, cudaStream_t stream);

  // The same, of the gradient before a norm, whose sums for gamma and beta follow in part_sums.
  static cudaError_t start_after_norm(const BiasDropoutBackward<T>& in,
                                      const RowNormBackward<T>& norm, T* grad_x, A* part_sums,
                                      int64_t part_row, cudaStream_t stream);

  // Adds up the parts of all sums over rows.
  static cudaError_t finish_sums(const PartsOf<A, 6>& all, cudaStream_t stream);
};

}  // namespace ssept::cuda
