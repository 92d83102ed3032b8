// CUDA kernels of `causal_attention` for float32, by tensor cores from inputs rounded to TF32.
#include "ops/causal_attention/backward.cuh"
#include "ops/causal_attention/forward.cuh"

template struct ssept::cuda::CausalAttentionKernels<float, true>;
