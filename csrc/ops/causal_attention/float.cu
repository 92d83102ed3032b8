// CUDA kernels of `causal_attention` for float32, in full precision.
#include "ops/causal_attention/backward.cuh"
#include "ops/causal_attention/forward.cuh"

template struct ssept::cuda::CausalAttentionKernels<float, false>;
