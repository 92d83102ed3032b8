// Launchers of the `bias_dropout` kernels, for T in float, double, __half, __nv_bfloat16. A is
// float, or double for double. They queue work on `stream`, never wait, and return the first error.
#pragma once
#include <cuda_runtime_api.h>

#include "ops/bias_dropout/params.h"

namespace ssept::cuda {

template <class T>
cudaError_t launch_bias_dropout(const BiasDropout<T>& in, T* out, cudaStream_t stream);

// Rows whose bias gradients are summed together first: a function of the shape alone, so that sums
// are the same on every GPU.
inline int64_t bias_dropout_rows_per_part(int64_t num_rows) {
  return num_rows <= 32 * 1024 ? 32 : (num_rows + 1023) / 1024;
}
inline int64_t bias_dropout_parts(int64_t num_rows) {
  const int64_t rows = bias_dropout_rows_per_part(num_rows);
  return (num_rows + rows - 1) / rows;
}

// part_sums is scratch, (parts, C); grad_bias, (C), is written also where there are no rows.
template <class T, class A>
cudaError_t launch_bias_dropout_backward(const BiasDropoutBackward<T>& in, T* grad_x, A* part_sums,
                                         A* grad_bias, cudaStream_t stream);

}  // namespace ssept::cuda
