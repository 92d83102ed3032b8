// CUDA kernels of `causal_attention` for float16.
#include "ops/causal_attention/backward.cuh"
#include "ops/causal_attention/forward.cuh"

namespace ssept::cuda {

template cudaError_t launch_causal_attention<__half, false>(const CausalAttention<__half>&, __half*,
                                                            float*, cudaStream_t);
template cudaError_t launch_causal_attention_backward<__half, false>(const CausalAttention<__half>&,
                                                                     const __half*, const __half*,
                                                                     const float*, float*, __half*,
                                                                     __half*, __half*,
                                                                     cudaStream_t);

}  // namespace ssept::cuda
