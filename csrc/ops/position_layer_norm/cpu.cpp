// CPU kernels of `position_layer_norm`: one pass over the tokens, forward and backward.
#include <tuple>

#include "common/library.h"
#include "cpu/occurrences.h"
#include "cpu/panels.h"
#include "cpu/row_norm.h"
#include "ops/position_layer_norm/args.h"

namespace ssept::cpu {
namespace {

// Parts that the backward is divided into, at most.
constexpr int64_t kMostParts = 64;

template <class T>
SSEPT_INLINE void prefetch(const T* row, int64_t width) {
  for (int64_t i = 0; i < width; i += 64 / static_cast<int64_t>(sizeof(T)))
    __builtin_prefetch(row + i);
}

template <class S, class T, class A = Accumulator<T>>
SSEPT_INLINE void forward(const PositionLayerNorm<T>& in, T* out, int64_t begin, int64_t end,
                          BadId& bad_position) {
  for (int64_t n = begin; n < end; ++n) {
    const int64_t position = in.by_position ? in.positions[n] : 0;
    if (!bad_position.usable(position, in.position_rows, /*first=*/0)) continue;
    const int64_t row = n * in.width;
    normalise<S>(in.x + row, in.gamma + position * in.width, in.beta + position * in.width,
                 in.width, static_cast<A>(in.eps), out + row);
  }
}

// All tokens of the positions [begin, end): of each by one thread, in rising order, so that the
// gradients of gamma and beta do not depend on the number of threads.
template <class S, class T, class A = Accumulator<T>>
SSEPT_INLINE void backward(const PositionLayerNorm<T>& in, const T* grad, const Occurrences& tokens,
                           T* grad_x, A* grad_gamma, A* grad_beta, int64_t begin, int64_t end) {
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
      normalise_backward<S, T>(in.x + row, gamma, grad + row, nullptr, in.width,
                               static_cast<A>(in.eps), grad_x + row, to_gamma, to_beta);
    }
  }
}

// With one gamma and beta for all tokens.
template <class T, class A = Accumulator<T>>
void backward_without_positions(const PositionLayerNorm<T>& in, const T* grad, int64_t num_real,
                                T* grad_x, A* grad_gamma, A* grad_beta) {
  const RowNormBackward<T> rows{in.x, in.gamma, grad, nullptr, grad_x, num_real, in.width, in.eps};
  const auto parts = sums_of_parts<A>(
      num_real, rows_per_part(num_real, 2), 2 * in.width,
      [&](A* sums, int64_t begin, int64_t end) { normalise_backward(rows, sums, begin, end); });
  add_parts(parts, 0, in.width, grad_gamma, 1, in.width);
  add_parts(parts, in.width, in.width, grad_beta, 1, in.width);
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
      with_simd<T>([&]<class S>(S) SSEPT_INLINE_LAMBDA {
        forward<S, T>(in, mutable_data<T>(out), begin, end, bad_position);
      });
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
  const Tensor grad_x = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  const Tensor grad_gamma = args.new_like_gamma(), grad_beta = args.new_like_gamma();
  BadId bad_position;
  dispatch_floating("x", args.type, [&]<class T>() {
    using A = Accumulator<T>;
    const auto in = args.kernel_args<T>();
    check_offsets("cu_seqlens", in.cu_seqlens, in.num_sequences, in.num_tokens);
    const int64_t num_real = in.cu_seqlens[in.num_sequences];
    A *const to_gamma = mutable_data<A>(grad_gamma), *const to_beta = mutable_data<A>(grad_beta);
    if (!in.by_position) {
      zero_rows_from(grad_x, num_real);
      backward_without_positions(in, data<T>(g), num_real, mutable_data<T>(grad_x), to_gamma,
                                 to_beta);
      return;
    }
    for (int64_t n = 0; n < num_real; ++n)
      bad_position.usable(in.positions[n], in.position_rows, /*first=*/0);
    bad_position.raise("positions", in.position_rows);
    zero_rows_from(grad_x, num_real);
    zero_rows_from(grad_gamma, 0);
    zero_rows_from(grad_beta, 0);
    const Occurrences tokens(in.positions, num_real, in.position_rows, /*first=*/0);
    const auto position_from = [&](int64_t entry) {
      const auto& start = tokens.start;
      return std::lower_bound(start.begin(), start.end(), entry) - start.begin();
    };
    // Late positions have more tokens than early ones, so tokens are split, not positions.
    const int64_t parts = std::min<int64_t>(kMostParts, num_real / grain(in.width) + 1);
    for_each_part(parts, no_memory, [&](int64_t part, int) {
      with_simd<T>([&]<class S>(S) SSEPT_INLINE_LAMBDA {
        backward<S, T>(in, data<T>(g), tokens, mutable_data<T>(grad_x), to_gamma, to_beta,
                       position_from(num_real * part / parts),
                       position_from(num_real * (part + 1) / parts));
      });
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
