// CPU kernels of `lazy_adam` and `rowwise_adagrad`. Ids are split over threads; a row has one id at
// most, so results do not depend on the number of threads.
#include "common/library.h"
#include "cpu/parallel.h"
#include "ops/row_update/args.h"

namespace ssept::cpu {
namespace {

// Of rows that lie anywhere in memory, so many are on their way to the caches at once.
constexpr int64_t kRowsAhead = 8;

template <class T>
SSEPT_INLINE void prefetch(const T* row, int64_t width) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < width; i += kLine) __builtin_prefetch(row + i, /*write=*/1);
}

// size: learning rate over the correction of the averages; root: of the squares', inverse.
template <class T>
SSEPT_SIMD_CLONES void update_rows(const LazyAdam<T>& in, T size, T root, int64_t begin,
                                   int64_t end) {
  const T beta1 = in.beta1, beta2 = in.beta2, rest1 = 1 - in.beta1, rest2 = 1 - in.beta2;
  const T eps = in.eps, decay = in.weight_decay;
  for (int64_t j = begin; j < end; ++j) {
    if (j + kRowsAhead < end) {
      const int64_t ahead = in.ids[j + kRowsAhead] * in.width;
      for (const T* of : {in.table, in.exp_avg, in.exp_avg_sq}) prefetch(of + ahead, in.width);
    }
    if (in.ids[j] == 0) continue;
    const int64_t at = in.ids[j] * in.width;
    T *p = in.table + at, *m = in.exp_avg + at, *v = in.exp_avg_sq + at;
    const T* grad = in.grad + j * in.width;
#pragma omp simd
    for (int64_t i = 0; i < in.width; ++i) {
      const T g = grad[i] + decay * p[i];
      m[i] = beta1 * m[i] + rest1 * g;
      v[i] = beta2 * v[i] + rest2 * g * g;
      p[i] -= size * m[i] / (std::sqrt(v[i]) * root + eps);
    }
  }
}

template <class T>
SSEPT_SIMD_CLONES void update_rows(const RowwiseAdagrad<T>& in, T learning_rate, int64_t begin,
                                   int64_t end) {
  const T eps = in.eps, decay = in.weight_decay;
  for (int64_t j = begin; j < end; ++j) {
    if (j + kRowsAhead < end) {
      const int64_t ahead = in.ids[j + kRowsAhead];
      prefetch(in.table + ahead * in.width, in.width);
      prefetch(in.sum_of_squares + ahead, 1);
    }
    if (in.ids[j] == 0) continue;
    T* p = in.table + in.ids[j] * in.width;
    const T* grad = in.grad + j * in.width;
    T squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < in.width; ++i) {
      const T g = grad[i] + decay * p[i];
      squares += g * g;
    }
    T& sum = in.sum_of_squares[in.ids[j]];
    sum += squares / in.width;
    const T size = learning_rate / (std::sqrt(sum) + eps);
#pragma omp simd
    for (int64_t i = 0; i < in.width; ++i) p[i] -= size * (grad[i] + decay * p[i]);
  }
}

double value_of(const NumberIn& x) {
  return x.is_double ? *static_cast<const double*>(x.at) : *static_cast<const float*>(x.at);
}

// Checks what CUDA kernels read, or report later, before anything is changed.
template <class T>
double checked_learning_rate(const RowUpdate<T>& in) {
  const double learning_rate = value_of(in.learning_rate);
  check_finite("learning_rate", learning_rate);
  BadId bad;
  for (int64_t j = 0; j < in.num_ids; ++j) bad.usable(in.ids[j], in.rows);
  bad.raise("ids", in.rows);
  for (int64_t j = 0, before = 0; j < in.num_ids; ++j) {
    if (in.ids[j] == 0) continue;
    check_ascending("ids", before, in.ids[j]);
    before = in.ids[j];
  }
  return learning_rate;
}

struct Kernels {
  template <class T>
  static void update(const Tensor&, const LazyAdam<T>& in) {
    const double count = value_of(in.step);
    check(count >= 1, "step must be at least 1, got ", count);
    // 1 - beta^count, without cancellation
    const double correction1 = -std::expm1(count * in.log_beta1);
    const double correction2 = -std::expm1(count * in.log_beta2);
    const T size = checked_learning_rate(in) / correction1, root = 1 / std::sqrt(correction2);
    torch::stable::parallel_for(
        0, in.num_ids, grain(8 * in.width),
        [&](int64_t begin, int64_t end) { update_rows(in, size, root, begin, end); });
  }

  template <class T>
  static void update(const Tensor&, const RowwiseAdagrad<T>& in) {
    const T learning_rate = checked_learning_rate(in);
    torch::stable::parallel_for(
        0, in.num_ids, grain(4 * in.width),
        [&](int64_t begin, int64_t end) { update_rows(in, learning_rate, begin, end); });
  }
};

}  // namespace
}  // namespace ssept::cpu

SSEPT_LIBRARY_IMPL(CPU, m) {
  m.impl("lazy_adam", TORCH_BOX(&ssept::lazy_adam<ssept::cpu::Kernels>));
  m.impl("rowwise_adagrad", TORCH_BOX(&ssept::rowwise_adagrad<ssept::cpu::Kernels>));
}
