// The losses of sampled logits and their gradients. Exponentials are computed for the logits of
// many tokens at once, however few a token has.
#pragma once
#include <cmath>

#include "cpu/tiles.h"
#include "ops/sampled_logits/params.h"

namespace ssept::cpu {

// log(1 + x) for x in 0..1.
template <class S, class A>
SSEPT_INLINE typename S::template Vec<A> log1p(typename S::template Vec<A> x) {
  using Vec = typename S::template Vec<A>;
  if constexpr (sizeof(A) == 4) {
    // 2 artanh(x / (2 + x)), by a polynomial within a quarter of float's rounding.
    const Vec s = x / (x + 2.0f), z = s * s;
    Vec p = z * 0.2686755657196045f + 0.2823396325111389f;
    p = p * z + 0.400076687335968f;
    p = p * z + 0.6666663885116577f;
    return s * (p * z + 2.0f);
  } else {
    Vec y;
    for (int64_t i = 0; i < S::template kLanes<A>; ++i) y[i] = std::log1p(x[i]);
    return y;
  }
}

// Turns a token's logits into what `exponentials` is to be given.
template <class A>
SSEPT_INLINE void prepare_logits(Loss loss, A* x, int64_t columns) {
  if (loss == Loss::kBce) {
    x[0] = -x[0];
    return;
  }
  A shift = x[0];
  if (loss == Loss::kSampledSoftmax) {
#pragma omp simd reduction(max : shift)
    for (int64_t k = 0; k < columns; ++k) shift = x[k] > shift ? x[k] : shift;
    if (!std::isfinite(shift)) shift = 0;
  }
  for (int64_t k = 0; k < columns; ++k) x[k] -= shift;
}

// For a softmax, of x that are at most 0 or not finite, y = e^x. Else y is the derivative of
// log(1 + e^x), and x becomes that. In whole vectors.
template <class S, class A>
SSEPT_INLINE void exponentials(Loss loss, A* x, A* y, int64_t n) {
  using Vec = typename S::template Vec<A>;
  const Vec zero{}, one = zero + A(1);
  for (int64_t i = 0; i < n; i += S::template kLanes<A>) {
    const Vec at = S::load(x + i), e = exponential<S, A>(at < zero ? at : -at);
    if (loss == Loss::kSampledSoftmax) {
      S::store(y + i, at <= zero ? e : at);
    } else {
      S::store(x + i, (at < zero ? zero : at) + log1p<S, A>(e));
      S::store(y + i, at == at ? (at < zero ? e : one) / (e + one) : at);  // NaN stays
    }
  }
}

// A token's loss, from what `exponentials` has made of its logits; y becomes its gradient.
template <class A>
SSEPT_INLINE A finish_loss(const SampledLoss<A>& loss, const A* x, A* y, int64_t columns) {
  A sum_x = 0, sum_y = 0;  // of the negatives
#pragma omp simd reduction(+ : sum_x, sum_y)
  for (int64_t k = 1; k < columns; ++k) {
    sum_x += x[k];
    sum_y += y[k];
  }
  if (loss.loss == Loss::kBce) {
    y[0] *= -loss.beta;
    return loss.beta * x[0] + sum_x;
  }
  const bool softmax = loss.loss == Loss::kSampledSoftmax;
  const A sum = y[0] + sum_y;  // of a softmax
  const A scale = 1 / (softmax ? sum : static_cast<A>(std::max<int64_t>(columns - 1, 1)));
  for (int64_t k = 0; k < columns; ++k) y[k] *= scale;
  if (softmax) {
    y[0] -= 1;
    return std::log(sum) - x[0];
  }
  y[0] = -sum_y * scale;
  return sum_x * scale;
}

}  // namespace ssept::cpu
