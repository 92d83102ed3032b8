// CUDA kernels of `causal_attention` for float64.
#include "ops/causal_attention/backward.cuh"
#include "ops/causal_attention/forward.cuh"

template struct ssept::cuda::CausalAttentionKernels<double, false>;
