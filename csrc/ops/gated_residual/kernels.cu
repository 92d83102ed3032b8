// CUDA kernels of `gated_residual` and `swiglu`: a thread takes a quad of columns.
#include "cuda/dropout.cuh"
#include "cuda/quads.cuh"
#include "ops/gated_residual/launch.h"

namespace ssept::cuda {
namespace {

// Of sigmoid: its value s and 1 - s, neither of which is a difference of nearly equal numbers.
template <class A>
struct Gate {
  A open, shut;

  __device__ __forceinline__ explicit Gate(A x) {
    const A e = exp(x < 0 ? x : -x), large = 1 / (1 + e), small = e * large;
    open = x < 0 ? small : large;
    shut = x < 0 ? large : small;
  }
};

template <class T, int VEC>
__global__ void __launch_bounds__(kQuadThreads)
    residual_kernel(GatedResidual<T> in, T* __restrict__ out, int64_t rows_per_block) {
  using A = Accumulator<T>;
  const DropoutMask mask(in.dropout);
  for_each_quad(in.num_rows, in.width, rows_per_block, [&](int64_t n, int64_t column) {
    const int64_t row = n * in.width;
    A x[kQuad], y[kQuad];
    load_quad<VEC>(in.x + row, column, in.width, x);
    load_quad<VEC>(in.y + row, column, in.width, y);
    mask.apply(y, n, column);
    if (in.gate != nullptr) {
      A gate[kQuad];
      load_quad<VEC>(in.gate + row, column, in.width, gate);
#pragma unroll
      for (int j = 0; j < kQuad; ++j) y[j] *= Gate<A>(gate[j]).open;
    }
#pragma unroll
    for (int j = 0; j < kQuad; ++j) x[j] += y[j];
    store_quad<VEC>(out + row, column, in.width, x);
  });
}

template <class T, int VEC>
__global__ void __launch_bounds__(kQuadThreads)
    residual_backward_kernel(GatedResidual<T> in, T* __restrict__ grad_y, T* __restrict__ grad_gate,
                             int64_t rows_per_block) {
  using A = Accumulator<T>;
  const DropoutMask mask(in.dropout);
  for_each_quad(in.num_rows, in.width, rows_per_block, [&](int64_t n, int64_t column) {
    const int64_t row = n * in.width;
    A grad[kQuad];
    load_quad<VEC>(in.x + row, column, in.width, grad);
    if (in.gate != nullptr) {
      A y[kQuad], gate[kQuad];
      load_quad<VEC>(in.y + row, column, in.width, y);
      load_quad<VEC>(in.gate + row, column, in.width, gate);
      mask.apply(y, n, column);
#pragma unroll
      for (int j = 0; j < kQuad; ++j) {
        const Gate<A> at(gate[j]);
        grad[j] *= at.open;
        gate[j] = grad[j] * at.shut * y[j];
      }
      store_quad<VEC>(grad_gate + row, column, in.width, gate);
    }
    mask.apply(grad, n, column);
    store_quad<VEC>(grad_y + row, column, in.width, grad);
  });
}

template <class T, int VEC>
__global__ void __launch_bounds__(kQuadThreads)
    swiglu_kernel(Swiglu<T> in, T* __restrict__ out, int64_t rows_per_block) {
  using A = Accumulator<T>;
  const DropoutMask mask(in.dropout);
  for_each_quad(in.num_rows, in.width, rows_per_block, [&](int64_t n, int64_t column) {
    const T* const u = in.u + 2 * n * in.width;
    A a[kQuad], b[kQuad];
    load_quad<VEC>(u, column, in.width, a);
    load_quad<VEC>(u + in.width, column, in.width, b);
#pragma unroll
    for (int j = 0; j < kQuad; ++j) a[j] *= Gate<A>(a[j]).open * b[j];
    mask.apply(a, n, column);
    store_quad<VEC>(out + n * in.width, column, in.width, a);
  });
}

template <class T, int VEC>
__global__ void __launch_bounds__(kQuadThreads)
    swiglu_backward_kernel(Swiglu<T> in, const T* __restrict__ grad, T* __restrict__ grad_u,
                           int64_t rows_per_block) {
  using A = Accumulator<T>;
  const DropoutMask mask(in.dropout);
  for_each_quad(in.num_rows, in.width, rows_per_block, [&](int64_t n, int64_t column) {
    const int64_t row = 2 * n * in.width;
    A a[kQuad], b[kQuad], g[kQuad];
    load_quad<VEC>(in.u + row, column, in.width, a);
    load_quad<VEC>(in.u + row + in.width, column, in.width, b);
    load_quad<VEC>(grad + n * in.width, column, in.width, g);
    mask.apply(g, n, column);
#pragma unroll
    for (int j = 0; j < kQuad; ++j) {
      const Gate<A> at(a[j]);
      const A gated = g[j] * at.open, silu = gated * a[j];
      a[j] = gated * (1 + a[j] * at.shut) * b[j];
      b[j] = silu;
    }
    store_quad<VEC>(grad_u + row, column, in.width, a);
    store_quad<VEC>(grad_u + row + in.width, column, in.width, b);
  });
}

}  // namespace

template <class T>
cudaError_t GatedResidualKernels<T>::forward(const GatedResidual<T>& in, T* out,
                                             cudaStream_t stream) {
  return with_pack_size<T>({in.width}, {in.x, in.y, in.gate, out}, [&]<int VEC>() {
    return launch_on_quads(residual_kernel<T, VEC>, in.num_rows, in.width, stream, in, out);
  });
}

template <class T>
cudaError_t GatedResidualKernels<T>::backward(const GatedResidual<T>& in, T* grad_y, T* grad_gate,
                                              cudaStream_t stream) {
  return with_pack_size<T>({in.width}, {in.x, in.y, in.gate, grad_y, grad_gate}, [&]<int VEC>() {
    return launch_on_quads(residual_backward_kernel<T, VEC>, in.num_rows, in.width, stream, in,
                           grad_y, grad_gate);
  });
}

template <class T>
cudaError_t SwigluKernels<T>::forward(const Swiglu<T>& in, T* out, cudaStream_t stream) {
  return with_pack_size<T>({in.width}, {in.u, out}, [&]<int VEC>() {
    return launch_on_quads(swiglu_kernel<T, VEC>, in.num_rows, in.width, stream, in, out);
  });
}

template <class T>
cudaError_t SwigluKernels<T>::backward(const Swiglu<T>& in, const T* grad, T* grad_u,
                                       cudaStream_t stream) {
  return with_pack_size<T>({in.width}, {in.u, grad, grad_u}, [&]<int VEC>() {
    return launch_on_quads(swiglu_backward_kernel<T, VEC>, in.num_rows, in.width, stream, in, grad,
                           grad_u);
  });
}

template struct GatedResidualKernels<float>;
template struct GatedResidualKernels<double>;
template struct GatedResidualKernels<__half>;
template struct GatedResidualKernels<__nv_bfloat16>;
template struct SwigluKernels<float>;
template struct SwigluKernels<double>;
template struct SwigluKernels<__half>;
template struct SwigluKernels<__nv_bfloat16>;

}  // namespace ssept::cuda
