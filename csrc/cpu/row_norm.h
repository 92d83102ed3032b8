// Layer norms of rows.
#pragma once
#include <cmath>

#include "common/accumulator.h"
#include "common/row_norm.h"
#include "cpu/tiles.h"

namespace ssept::cpu {

// Mean of a row, and 1 / sqrt(variance + eps).
template <class A>
struct Statistics {
  A mean, rstd;
};

// Calls f(i, keep) for vectors that cover n elements, at least one vector's: the last overlaps the
// one before, and keep(v) clears the lanes of a v that an earlier vector had.
template <class S, class A, class F>
SSEPT_INLINE void for_vectors(int64_t n, F&& f) {
  using Vec = typename S::template Vec<A>;
  constexpr int64_t kLanes = S::template kLanes<A>;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) f(i, [](Vec v) SSEPT_INLINE_LAMBDA { return v; });
  if (i == n) return;
  Vec lane;
  for (int64_t l = 0; l < kLanes; ++l) lane[l] = static_cast<A>(l);
  const auto first = static_cast<A>(kLanes - (n - i));
  f(n - kLanes, [&](Vec v) SSEPT_INLINE_LAMBDA { return lane < first ? Vec{} : v; });
}

// Whether rows of n elements of T are worked on in vectors; else compilers make them of loops.
template <class S, class T>
SSEPT_INLINE bool in_vectors(int64_t n) {
  return std::is_same_v<T, Accumulator<T>> && n >= S::template kLanes<Accumulator<T>>;
}

template <class S, class T, class A = Accumulator<T>>
SSEPT_INLINE Statistics<A> statistics(const T* x, int64_t n, A eps) {
  A sum = 0, squares = 0;
  if constexpr (std::is_same_v<T, A>) {
    if (in_vectors<S, T>(n)) {
      typename S::template Vec<A> sums{}, of_squares{};
      for_vectors<S, A>(
          n, [&](int64_t i, auto keep) SSEPT_INLINE_LAMBDA { sums += keep(S::load(x + i)); });
      const A mean = horizontal_sum<S, A>(sums) / static_cast<A>(n);
      for_vectors<S, A>(n, [&](int64_t i, auto keep) SSEPT_INLINE_LAMBDA {
        const auto centred = keep(S::load(x + i) - mean);
        of_squares += centred * centred;
      });
      squares = horizontal_sum<S, A>(of_squares);
      return {mean, 1 / std::sqrt(squares / static_cast<A>(n) + eps)};
    }
  }
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += static_cast<A>(x[i]);
  const A mean = sum / static_cast<A>(n);
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < n; ++i) {
    const A centred = static_cast<A>(x[i]) - mean;
    squares += centred * centred;
  }
  return {mean, 1 / std::sqrt(squares / static_cast<A>(n) + eps)};
}

template <class S, class T, class A = Accumulator<T>>
SSEPT_INLINE void normalise(const T* x, const T* gamma, const T* beta, int64_t width, A eps,
                            T* out) {
  const auto of_row = statistics<S, T>(x, width, eps);
  const A mean = of_row.mean, rstd = of_row.rstd;
  if constexpr (std::is_same_v<T, A>) {
    if (in_vectors<S, T>(width))
      return for_vectors<S, A>(width, [&](int64_t i, auto) SSEPT_INLINE_LAMBDA {
        S::store(out + i, (S::load(x + i) - mean) * rstd * S::load(gamma + i) + S::load(beta + i));
      });
  }
  for (int64_t i = 0; i < width; ++i)
    out[i] = static_cast<T>((static_cast<A>(x[i]) - mean) * rstd * static_cast<A>(gamma[i]) +
                            static_cast<A>(beta[i]));
}

// The gradient of x, to which `more` is added unless it is null, and sums of those of gamma and
// beta.
template <class S, class T, class A = Accumulator<T>>
SSEPT_INLINE void normalise_backward(const T* x, const T* gamma, const T* grad, const T* more,
                                     int64_t width, A eps, T* grad_x, A* to_gamma, A* to_beta) {
  if constexpr (std::is_same_v<T, A>) {
    if (in_vectors<S, T>(width)) {
      const A n = static_cast<A>(width);
      typename S::template Vec<A> sums{}, of_scaled{}, squares{}, dots{};
      for_vectors<S, A>(width, [&](int64_t i, auto keep) SSEPT_INLINE_LAMBDA {
        sums += keep(S::load(x + i));
        of_scaled += keep(S::load(grad + i) * S::load(gamma + i));
      });
      const A mean = horizontal_sum<S, A>(sums) / n;
      for_vectors<S, A>(width, [&](int64_t i, auto keep) SSEPT_INLINE_LAMBDA {
        const auto centred = keep(S::load(x + i) - mean);
        squares += centred * centred;
        dots += centred * (S::load(grad + i) * S::load(gamma + i));
      });
      const A rstd = 1 / std::sqrt(horizontal_sum<S, A>(squares) / n + eps);
      const A mean_grad = horizontal_sum<S, A>(of_scaled) / n;
      const A slope = horizontal_sum<S, A>(dots) / n * rstd * rstd;
      for_vectors<S, A>(width, [&](int64_t i, auto keep) SSEPT_INLINE_LAMBDA {
        const auto g = S::load(grad + i), centred = S::load(x + i) - mean;
        auto of_x = (g * S::load(gamma + i) - mean_grad - centred * slope) * rstd;
        if (more != nullptr) of_x += S::load(more + i);
        S::store(grad_x + i, of_x);
        S::store(to_gamma + i, S::load(to_gamma + i) + keep(g * centred * rstd));
        S::store(to_beta + i, S::load(to_beta + i) + keep(g));
      });
      return;
    }
  }
  const auto of_row = statistics<S, T>(x, width, eps);
  const A mean = of_row.mean, rstd = of_row.rstd;
  A sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
  for (int64_t i = 0; i < width; ++i) {
    const A scaled = static_cast<A>(grad[i]) * static_cast<A>(gamma[i]);
    sum += scaled;
    dot += scaled * (static_cast<A>(x[i]) - mean);
  }
  const A mean_grad = sum / static_cast<A>(width);
  const A slope = dot / static_cast<A>(width) * rstd * rstd;
  const auto of_x = [&](int64_t i) SSEPT_INLINE_LAMBDA {
    const A scaled = static_cast<A>(grad[i]) * static_cast<A>(gamma[i]);
    return rstd * (scaled - mean_grad - slope * (static_cast<A>(x[i]) - mean));
  };
  if (more != nullptr) {
    for (int64_t i = 0; i < width; ++i)
      grad_x[i] = static_cast<T>(of_x(i) + static_cast<A>(more[i]));
  } else {
    for (int64_t i = 0; i < width; ++i) grad_x[i] = static_cast<T>(of_x(i));
  }
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) {
    const A wide = static_cast<A>(grad[i]);
    to_gamma[i] += wide * (static_cast<A>(x[i]) - mean) * rstd;
    to_beta[i] += wide;
  }
}

// Of rows [begin, end), whose sums for gamma and then beta are in `sums`.
template <class T, class A = Accumulator<T>>
void normalise_backward(const RowNormBackward<T>& in, A* sums, int64_t begin, int64_t end) {
  with_simd([&]<class S>(S) SSEPT_INLINE_LAMBDA {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t row = n * in.width;
      const T* const more = in.more ? in.more + row : nullptr;
      normalise_backward<S>(in.x + row, in.gamma, in.grad + row, more, in.width,
                            static_cast<A>(in.eps), in.grad_x + row, sums, sums + in.width);
    }
  });
}

}  // namespace ssept::cpu
