// Launchers of the `user_item_embedding` kernels, for T in float, double, __half, __nv_bfloat16.
// They queue work on `stream`, never wait, and return the first error.
#pragma once
#include <cuda_runtime_api.h>

#include "common/accumulator.h"
#include "cuda/bad_id.h"
#include "ops/user_item_embedding/params.h"

namespace ssept::cuda {

template <class T>
struct UserItemEmbeddingKernels {
  using A = Accumulator<T>;

  static cudaError_t forward(const UserItemEmbedding<T>& in, T* out, BadIdNote* note,
                             cudaStream_t stream);

  // item_order: stable argsort of the items, for sums in a fixed order, or null. The gradients of
  // users and positions are always summed in a fixed order. more_item and more_user, or null, are
  // added to the gradients of these tables.
  static cudaError_t backward(const UserItemEmbedding<T>& in, const T* grad,
                              const int64_t* item_order, const T* more_item, const T* more_user,
                              A* grad_item, A* grad_user, A* grad_position, BadIdNote* note,
                              cudaStream_t stream);
};

}  // namespace ssept::cuda
