// The losses of sampled logits, their gradients and their mean.
#pragma once
#include "cuda/launch.cuh"
#include "ops/sampled_logits/params.h"

namespace ssept::cuda {

inline constexpr int kMeanThreads = 1024;

template <class A>
__device__ __forceinline__ A warp_max(A x) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2)
    x = max(x, __shfl_xor_sync(kAllLanes, x, offset));
  return x;
}

// A warp computes a token's loss from its logits, and the gradient of the loss, which may lie where
// the logits do.
template <class T, class A>
__device__ __forceinline__ A compute_loss(const SampledLoss<A>& loss, const A* logits, T* gradient,
                                          int64_t columns) {
  const int lane = threadIdx.x % kWarpSize;
  const A positive = logits[0];
  __syncwarp();  // before lane 0 overwrites it
  A sum = 0;
  if (loss.loss == Loss::kSampledSoftmax) {
    A most = positive;
    for (int64_t k = lane; k < columns; k += kWarpSize) most = max(most, logits[k]);
    most = warp_max(most);
    if (!isfinite(most)) most = 0;
    for (int64_t k = lane; k < columns; k += kWarpSize) sum += exp(logits[k] - most);
    sum = group_sum<kWarpSize>(sum);
    for (int64_t k = lane; k < columns; k += kWarpSize)
      gradient[k] = narrow<T>(exp(logits[k] - most) / sum - (k == 0 ? A(1) : A(0)));
    return log(sum) - (positive - most);
  }
  // log(1 + e^x), where x is the logit or, of kBpr, by how much it exceeds the positive's.
  const bool of_pairs = loss.loss == Loss::kBpr;
  const A of_negative = of_pairs ? A(1) / static_cast<A>(max(columns - 1, int64_t{1})) : A(1);
  A slopes = 0;
  for (int64_t k = lane; k < columns; k += kWarpSize) {
    if (of_pairs && k == 0) continue;
    const A x = k == 0 ? -positive : logits[k] - (of_pairs ? positive : A(0));
    const A weight = k == 0 ? loss.beta : of_negative;
    const A e = exp(x < 0 ? x : -x), slope = weight * (x < 0 ? e : A(1)) / (1 + e);
    sum += weight * ((x < 0 ? A(0) : x) + log1p(e));
    slopes += slope;
    gradient[k] = narrow<T>(k == 0 ? -slope : slope);
  }
  slopes = group_sum<kWarpSize>(slopes);
  if (of_pairs && lane == 0) gradient[0] = narrow<T>(-slopes);
  return group_sum<kWarpSize>(sum);
}

// One block sums up (N, 2) losses and numbers of targets, in a fixed order.
template <class A>
__global__ void __launch_bounds__(kMeanThreads)
    mean_kernel(const A* __restrict__ losses, int64_t num_tokens, A* mean, A* inverse_count) {
  __shared__ double of_warps[2][kWarpSize];
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  double sum[2] = {};
  for (int64_t n = threadIdx.x; n < num_tokens; n += kMeanThreads)
    for (int i = 0; i < 2; ++i) sum[i] += static_cast<double>(losses[2 * n + i]);
  for (int i = 0; i < 2; ++i) {
    sum[i] = group_sum<kWarpSize>(sum[i]);
    if (lane == 0) of_warps[i][warp] = sum[i];
  }
  __syncthreads();
  if (warp != 0) return;
  for (int i = 0; i < 2; ++i) sum[i] = group_sum<kWarpSize>(of_warps[i][lane]);
  if (lane != 0) return;
  const double num_targets = max(sum[1], 1.0);
  *mean = static_cast<A>(sum[0] / num_targets);
  *inverse_count = static_cast<A>(1 / num_targets);
}

}  // namespace ssept::cuda
