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

template <class S, class T, class A = Accumulator<T>>
SSEPT_INLINE Statistics<A> statistics(const T* x, int64_t n, A eps) {
  if (!fits<S, A>(n)) return statistics<Single<A>>(x, n, eps);
  typename S::template Vec<A> sums{}, squares{};
  for_vectors<S, A>(
      n, [&](int64_t i, auto keep) SSEPT_INLINE_LAMBDA { sums += keep(load_wide<S>(x + i)); });
  const A mean = horizontal_sum<S, A>(sums) / static_cast<A>(n);
  for_vectors<S, A>(n, [&](int64_t i, auto keep) SSEPT_INLINE_LAMBDA {
    const auto centred = keep(load_wide<S>(x + i) - mean);
    squares += centred * centred;
  });
  return {mean, 1 / std::sqrt(horizontal_sum<S, A>(squares) / static_cast<A>(n) + eps)};
}

template <class S, class T, class A = Accumulator<T>>
SSEPT_INLINE void normalise(const T* x, const T* gamma, const T* beta, int64_t width, A eps,
                            T* out) {
  const auto of_row = statistics<S, T>(x, width, eps);
  const A mean = of_row.mean, rstd = of_row.rstd;
  write_lanes<S>(width, out, [&]<class L>(L, int64_t i) SSEPT_INLINE_LAMBDA {
    return (load_wide<L>(x + i) - mean) * rstd * load_wide<L>(gamma + i) + load_wide<L>(beta + i);
  });
}

// The gradient of x, to which `more` is added unless it is null, and sums of those of gamma and
// beta.
template <class S, class T, class A = Accumulator<T>>
SSEPT_INLINE void normalise_backward(const T* x, const T* gamma, const T* grad, const T* more,
                                     int64_t width, A eps, T* grad_x, A* to_gamma, A* to_beta) {
  if (!fits<S, A>(width))
    return normalise_backward<Single<A>>(x, gamma, grad, more, width, eps, grad_x, to_gamma,
                                         to_beta);
  if (width == 0) return;
  const A n = static_cast<A>(width);
  typename S::template Vec<A> sums{}, of_scaled{}, squares{}, dots{};
  for_vectors<S, A>(width, [&](int64_t i, auto keep) SSEPT_INLINE_LAMBDA {
    sums += keep(load_wide<S>(x + i));
    of_scaled += keep(load_wide<S>(grad + i) * load_wide<S>(gamma + i));
  });
  const A mean = horizontal_sum<S, A>(sums) / n;
  for_vectors<S, A>(width, [&](int64_t i, auto keep) SSEPT_INLINE_LAMBDA {
    const auto centred = keep(load_wide<S>(x + i) - mean);
    squares += centred * centred;
    dots += centred * (load_wide<S>(grad + i) * load_wide<S>(gamma + i));
  });
  const A rstd = 1 / std::sqrt(horizontal_sum<S, A>(squares) / n + eps);
  const A mean_grad = horizontal_sum<S, A>(of_scaled) / n;
  const A slope = horizontal_sum<S, A>(dots) / n * rstd * rstd;
  const auto finish = [&](int64_t i, auto of_gamma, auto of_beta) SSEPT_INLINE_LAMBDA {
    const auto g = load_wide<S>(grad + i), centred = load_wide<S>(x + i) - mean;
    auto of_x = (g * load_wide<S>(gamma + i) - mean_grad - centred * slope) * rstd;
    if (more != nullptr) of_x += load_wide<S>(more + i);
    store_rounded<S>(grad_x + i, of_x);
    S::store(to_gamma + i, of_gamma + g * centred * rstd);
    S::store(to_beta + i, of_beta + g);
  };
  // The last vector overlaps the one before: its sums are read before that is written, as a load
  // would wait for a store of which it needs a part.
  constexpr int64_t kLanes = S::template kLanes<A>;
  const int64_t last = width - kLanes;
  const auto last_gamma = S::load(to_gamma + last), last_beta = S::load(to_beta + last);
  for (int64_t i = 0; i < last; i += kLanes) finish(i, S::load(to_gamma + i), S::load(to_beta + i));
  finish(last, last_gamma, last_beta);
}

// Of rows [begin, end), whose sums for gamma and then beta are in `sums`.
template <class T, class A = Accumulator<T>>
void normalise_backward(const RowNormBackward<T>& in, A* sums, int64_t begin, int64_t end) {
  with_simd<T>([&]<class S>(S) SSEPT_INLINE_LAMBDA {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t row = n * in.width;
      const T* const more = in.more ? in.more + row : nullptr;
      normalise_backward<S>(in.x + row, in.gamma, in.grad + row, more, in.width,
                            static_cast<A>(in.eps), in.grad_x + row, sums, sums + in.width);
    }
  });
}

}  // namespace ssept::cpu
