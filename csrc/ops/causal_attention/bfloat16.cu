// CUDA kernels of `causal_attention` for bfloat16.
#include "ops/causal_attention/backward.cuh"
#include "ops/causal_attention/forward.cuh"

namespace ssept::cuda {

template cudaError_t launch_causal_attention<__nv_bfloat16, false>(
    const CausalAttention<__nv_bfloat16>&, __nv_bfloat16*, float*, cudaStream_t);
template cudaError_t launch_causal_attention_backward<__nv_bfloat16, false>(
    const CausalAttention<__nv_bfloat16>&, const __nv_bfloat16*, const __nv_bfloat16*, const float*,
    float*, __nv_bfloat16*, __nv_bfloat16*, __nv_bfloat16*, cudaStream_t);

}  // namespace ssept::cuda
