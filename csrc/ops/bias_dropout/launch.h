// Launchers of the `bias_dropout` kernels, for T in float, double, __half, __nv_bfloat16. They
// queue work on `stream`, never wait, and return the first error.
#pragma once
#include <cuda_runtime_api.h>

#include "common/accumulator.h"
#include "ops/bias_dropout/params.h"

namespace ssept::cuda {

// Rows whose bias gradients are summed together first: a function of the shape alone, so that sums
// are the same on every GPU.
inline int64_t bias_dropout_rows_per_part(int64_t num_rows) {
  return num_rows <= 32 * 1024 ? 32 : (num_rows + 1023) / 1024;
}
inline int64_t bias_dropout_parts(int64_t num_rows) {
  const int64_t rows = bias_dropout_rows_per_part(num_rows);
  return (num_rows + rows - 1) / rows;
}

template <class T>
struct BiasDropoutKernels {
  using A = Accumulator<T>;

  static cudaError_t forward(const BiasDropout<T>& in, T* out, cudaStream_t stream);

  // part_sums is scratch, (parts, C); grad_bias, (C), is written also where there are no rows.
  static cudaError_t backward(const BiasDropoutBackward<T>& in, T* grad_x, A* part_sums,
                              A* grad_bias, cudaStream_t stream);
};

}  // namespace ssept::cuda
