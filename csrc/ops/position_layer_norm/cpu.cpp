// CPU kernels of `position_layer_norm`: one pass over the tokens, forward and backward.
#include <cmath>
#include <tuple>

#include "common/library.h"
#include "cpu/occurrences.h"
#include "cpu/vector_ops.h"
#include "ops/position_layer_norm/args.h"

namespace ssept::cpu {
namespace {

// Mean of a row, and 1 / sqrt(variance + eps).
template <class A>
struct Statistics {
  A mean, rstd;
};

template <class T, class A = Accumulator<T>>
SSEPT_INLINE Statistics<A> statistics(const T* x, int64_t n, A eps) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += static_cast<A>(x[i]);
  const A mean = sum / static_cast<A>(n);
  A squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < n; ++i) {
    const A centred = static_cast<A>(x[i]) - mean;
    squares += centred * centred;
  }
  return {mean, 1 / std::sqrt(squares / static_cast<A>(n) + eps)};
}

template <class T>
SSEPT_INLINE void prefetch(const T* row, int64_t width) {
  for (int64_t i = 0; i < width; i += 64 / static_cast<int64_t>(sizeof(T)))
    __builtin_prefetch(row + i);
}

template <class T, class A = Accumulator<T>>
SSEPT_SIMD_CLONES void forward(const PositionLayerNorm<T>& in, T* out, int64_t begin, int64_t end,
                               BadId& bad_position) {
  for (int64_t n = begin; n < end; ++n) {
    const int64_t position = in.positions[n];
    if (!bad_position.usable(position, in.position_rows, /*first=*/0)) continue;
    const T* x = in.x + n * in.width;
    const T* gamma = in.gamma + position * in.width;
    const T* beta = in.beta + position * in.width;
    const auto of_row = statistics<T>(x, in.width, static_cast<A>(in.eps));
    const A mean = of_row.mean, rstd = of_row.rstd;
    for (int64_t i = 0; i < in.width; ++i)
      out[n * in.width + i] =
          static_cast<T>((static_cast<A>(x[i]) - mean) * rstd * static_cast<A>(gamma[i]) +
                         static_cast<A>(beta[i]));
  }
}

// All tokens of the positions [begin, end): of each by one thread, in rising order, so that the
// gradients of gamma and beta do not depend on the number of threads.
template <class T, class A = Accumulator<T>>
SSEPT_SIMD_CLONES void backward(const PositionLayerNorm<T>& in, const T* grad,
                                const Occurrences& tokens, T* grad_x, A* grad_gamma, A* grad_beta,
                                int64_t begin, int64_t end) {
  constexpr int64_t kAhead = 2;  // tokens: the next ones of a position lie anywhere in memory
  for (int64_t position = begin; position < end; ++position) {
    const T* gamma = in.gamma + position * in.width;
    A* to_gamma = grad_gamma + position * in.width;
    A* to_beta = grad_beta + position * in.width;
    for (int64_t o = tokens.start[position]; o < tokens.start[position + 1]; ++o) {
      if (o + kAhead < std::ssize(tokens.entries)) {
        const int64_t next = tokens.entries[o + kAhead] * in.width;
        prefetch(in.x + next, in.width);
        prefetch(grad + next, in.width);
        prefetch(grad_x + next, in.width);
      }
      const int64_t row = tokens.entries[o] * in.width;
      const T* x = in.x + row;
      const T* g = grad + row;
      const auto of_row = statistics<T>(x, in.width, static_cast<A>(in.eps));
      const A mean = of_row.mean, rstd = of_row.rstd;
      A sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
      for (int64_t i = 0; i < in.width; ++i) {
        const A scaled = static_cast<A>(g[i]) * static_cast<A>(gamma[i]);
        sum += scaled;
        dot += scaled * (static_cast<A>(x[i]) - mean);
      }
      const A mean_grad = sum / static_cast<A>(in.width);
      const A slope = dot / static_cast<A>(in.width) * rstd * rstd;
      for (int64_t i = 0; i < in.width; ++i) {
        const A scaled = static_cast<A>(g[i]) * static_cast<A>(gamma[i]);
        grad_x[row + i] =
            static_cast<T>(rstd * (scaled - mean_grad - slope * (static_cast<A>(x[i]) - mean)));
      }
#pragma omp simd
      for (int64_t i = 0; i < in.width; ++i) {
        const A wide = static_cast<A>(g[i]);
        to_gamma[i] += wide * (static_cast<A>(x[i]) - mean) * rstd;
        to_beta[i] += wide;
      }
    }
  }
}

Tensor position_layer_norm(const Tensor& x, const Tensor& gamma, const Tensor& beta,
                           const Tensor& positions, const Tensor& cu_seqlens, double eps) {
  const PositionLayerNormArgs args(x, gamma, beta, positions, cu_seqlens, eps);
  const Tensor out = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  BadId bad_position;
  dispatch_floating("x", args.type, [&]<class T>() {
    const auto in = args.kernel_args<T>();
    check_offsets("cu_seqlens", in.cu_seqlens, in.num_sequences, in.num_tokens);
    const int64_t num_real = in.cu_seqlens[in.num_sequences];
    zero_rows_from(out, num_real);
    torch::stable::parallel_for(0, num_real, grain(in.width), [&](int64_t begin, int64_t end) {
      forward<T>(in, mutable_data<T>(out), begin, end, bad_position);
    });
  });
  bad_position.raise("positions", gamma.size(0));
  return out;
}

std::tuple<Tensor, Tensor, Tensor> position_layer_norm_backward(
    const Tensor& grad, const Tensor& x, const Tensor& gamma, const Tensor& beta,
    const Tensor& positions, const Tensor& cu_seqlens, double eps) {
  const PositionLayerNormArgs args(x, gamma, beta, positions, cu_seqlens, eps);
  const Tensor g = args.contiguous_grad(grad);
  const ScalarType wide = accumulator_type(args.type);
  const Tensor grad_x = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  const Tensor grad_gamma = torch::stable::new_zeros(x, {gamma.size(0), gamma.size(1)}, wide);
  const Tensor grad_beta = torch::stable::new_zeros(x, {gamma.size(0), gamma.size(1)}, wide);
  BadId bad_position;
  dispatch_floating("x", args.type, [&]<class T>() {
    using A = Accumulator<T>;
    const auto in = args.kernel_args<T>();
    check_offsets("cu_seqlens", in.cu_seqlens, in.num_sequences, in.num_tokens);
    const int64_t num_real = in.cu_seqlens[in.num_sequences];
    for (int64_t n = 0; n < num_real; ++n)
      bad_position.usable(in.positions[n], in.position_rows, /*first=*/0);
    bad_position.raise("positions", in.position_rows);
    zero_rows_from(grad_x, num_real);
    const Occurrences tokens(in.positions, num_real, in.position_rows, /*first=*/0);
    const auto position_from = [&](int64_t entry) {
      const auto& start = tokens.start;
      return std::lower_bound(start.begin(), start.end(), entry) - start.begin();
    };
    // Late positions have more tokens than early ones, so tokens are split, not positions.
    torch::stable::parallel_for(0, num_real, grain(in.width), [&](int64_t begin, int64_t end) {
      backward<T>(in, data<T>(g), tokens, mutable_data<T>(grad_x), mutable_data<A>(grad_gamma),
                  mutable_data<A>(grad_beta), position_from(begin), position_from(end));
    });
  });
  return {grad_x, grad_gamma, grad_beta};
}

}  // namespace
}  // namespace ssept::cpu

SSEPT_LIBRARY_IMPL(CPU, m) {
  m.impl("position_layer_norm", TORCH_BOX(&ssept::cpu::position_layer_norm));
  m.impl("position_layer_norm_backward", TORCH_BOX(&ssept::cpu::position_layer_norm_backward));
}
