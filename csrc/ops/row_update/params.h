// The arguments of the kernels that update rows of a table, on either device. No torch headers: .cu
// files include this.
#pragma once
#include <cstdint>

namespace ssept {

// A number in a tensor, where a captured CUDA graph sees it change.
struct NumberIn {
  const void* at;
  bool is_double;  // or float
};

// What is the same for every optimiser.
template <class T>
struct RowUpdate {
  T* table;            // (R, W)
  const int64_t* ids;  // (M), ascending, or 0
  const T* grad;       // (M, W)
  NumberIn learning_rate;
  double eps, weight_decay;
  int64_t num_ids;  // M
  int64_t rows;     // R
  int64_t width;    // W
};

template <class T>
struct LazyAdam : RowUpdate<T> {
  T* exp_avg;     // (R, W)
  T* exp_avg_sq;  // (R, W)
  NumberIn step;
  double beta1, beta2;
  double log_beta1, log_beta2;
};

template <class T>
struct RowwiseAdagrad : RowUpdate<T> {
  T* sum_of_squares;  // (R)
};

}  // namespace ssept
