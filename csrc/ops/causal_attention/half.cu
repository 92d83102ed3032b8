// CUDA kernels of `causal_attention` for float16.
#include "ops/causal_attention/backward.cuh"
#include "ops/causal_attention/forward.cuh"

template struct ssept::cuda::CausalAttentionKernels<__half, false>;
