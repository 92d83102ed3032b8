// Launchers of the `feed_forward` kernels, for T in float, double, __half, __nv_bfloat16. They
// queue work on `stream`, never wait, and return the first error.
#pragma once
#include <cuda_runtime_api.h>

#include "common/accumulator.h"
#include "ops/feed_forward/params.h"

namespace ssept::cuda {

// Rows whose bias gradients are summed together first: a function of the shape alone, so that sums
// are the same on every GPU.
inline int64_t feed_forward_rows_per_part(int64_t num_rows) {
  return num_rows <= 32 * 1024 ? 32 : (num_rows + 1023) / 1024;
}
inline int64_t feed_forward_parts(int64_t num_rows) {
  const int64_t rows = feed_forward_rows_per_part(num_rows);
  return (num_rows + rows - 1) / rows;
}

// What stands between the products of `feed_forward`.
template <class T>
struct FeedForwardKernels {
  using A = Accumulator<T>;

  // After a product, in its place.
  static cudaError_t finish(const BiasDropout<T>& in, T* x, cudaStream_t stream);

  // Before the products of the backward: grad_x may be grad. Copies grad to `copy`, unless that is
  // null, and adds up grad_x, for each part of the rows, in part_sums: (parts, C) of rows of
  // `part_row` elements.
  static cudaError_t start(const BiasDropoutBackward<T>& in, const T* grad, T* grad_x, T* copy,
                           A* part_sums, int64_t part_row, cudaStream_t stream);

  // The columns of part_sums, (parts, first_width + second_width), added up.
  static cudaError_t sum_parts(const A* part_sums, int64_t parts, A* first, int64_t first_width,
                               A* second, int64_t second_width, cudaStream_t stream);
};

}  // namespace ssept::cuda
