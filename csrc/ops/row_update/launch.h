// Launchers of the kernels that update rows of a table, for T in float, double. They queue work on
// `stream`, never wait, and return the first error.
#pragma once
#include <cuda_runtime_api.h>

#include "cuda/bad_id.h"
#include "ops/row_update/params.h"

namespace ssept::cuda {

template <class T>
cudaError_t launch_update(const LazyAdam<T>& in, BadIdNote* note, cudaStream_t stream);

template <class T>
cudaError_t launch_update(const RowwiseAdagrad<T>& in, BadIdNote* note, cudaStream_t stream);

}  // namespace ssept::cuda
