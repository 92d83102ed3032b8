// CUDA kernels of `causal_attention` for float64.
#include "ops/causal_attention/backward.cuh"
#include "ops/causal_attention/forward.cuh"

namespace ssept::cuda {

template cudaError_t launch_causal_attention<double, false>(const CausalAttention<double>&, double*,
                                                            double*, cudaStream_t);
template cudaError_t launch_causal_attention_backward<double, false>(const CausalAttention<double>&,
                                                                     const double*, const double*,
                                                                     const double*, double*,
                                                                     double*, double*, double*,
                                                                     cudaStream_t);

}  // namespace ssept::cuda
