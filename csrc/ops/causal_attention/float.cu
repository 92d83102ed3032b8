// CUDA kernels of `causal_attention` for float32, in full precision.
#include "ops/causal_attention/backward.cuh"
#include "ops/causal_attention/forward.cuh"

namespace ssept::cuda {

template cudaError_t launch_causal_attention<float, false>(const CausalAttention<float>&, float*,
                                                           float*, cudaStream_t);
template cudaError_t launch_causal_attention_backward<float, false>(const CausalAttention<float>&,
                                                                    const float*, const float*,
                                                                    const float*, float*, float*,
                                                                    float*, float*, cudaStream_t);

}  // namespace ssept::cuda
