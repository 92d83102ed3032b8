// CUDA kernels of `causal_attention` for bfloat16.
#include "ops/causal_attention/backward.cuh"
#include "ops/causal_attention/forward.cuh"

template struct ssept::cuda::CausalAttentionKernels<__nv_bfloat16, false>;
