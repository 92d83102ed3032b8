// The products of `multi_head_attention`, a block of rows at a time.
#pragma once
#include "cpu/panels.h"
#include "ops/causal_attention/args.h"

namespace ssept::cpu {

// Both weights, (2 width, width), for one product.
template <class T>
std::vector<T> stacked(const Tensor& k_weight, const Tensor& v_weight) {
  std::vector<T> both(data<T>(k_weight), data<T>(k_weight) + k_weight.numel());
  both.insert(both.end(), data<T>(v_weight), data<T>(v_weight) + v_weight.numel());
  return both;
}

// x · weightᵀ, whose columns go to the products in turn: to each as many as x has.
template <class T, class A = Accumulator<T>>
void project(const Tensor& x, const T* weight, std::initializer_list<Tensor> products) {
  const int64_t width = x.size(1), columns = width * static_cast<int64_t>(products.size());
  const int64_t row = whole(columns, kMaxLanes<A>);
  Panels<T> panels(width, columns);
  panels.pack_transposed(weight, width);
  for_each_block<T>(x.size(0), width, row, [&](int64_t begin, int64_t end, const auto& memory) {
    const auto left = memory.left.rows(data<T>(x) + begin * width, width, end - begin, width);
    panels.multiply(false, end - begin, left, memory.product.get(), row);
    with_simd<T>([&]<class S>(S) SSEPT_INLINE_LAMBDA {
      const A* from = memory.product.get();
      for (const Tensor& product : products) {
        for (int64_t n = begin; n < end; ++n)
          round_row<S, T>(from + (n - begin) * row, A(1), nullptr, width,
                          mutable_data<T>(product) + n * width);
        from += width;
      }
    });
  });
}

// From the gradient of x · weightᵀ, (N, columns), to that of x, which includes the first rows of
// `residual`, and that of the weight, (columns, width).
template <class T, class A = Accumulator<T>>
void project_backward(const Tensor& grad, const Tensor& x, const Panels<T>& weight,
                      const T* residual, int64_t residual_rows, const Tensor& grad_x,
                      T* grad_weight) {
  const int64_t rows = x.size(0), width = x.size(1), columns = grad.size(1);
  const int64_t row = whole(width, kMaxLanes<A>), sum_rows = whole(columns, kProductRows);
  const auto add_part = [&](A* sums, int64_t begin, int64_t end) {
    Panels<T> block(kRowsPerBlock, width);
    const LeftSideMaker<T> left(kRowsPerBlock, columns);
    const Buffer<A> product(kRowsPerBlock * row);
    for (int64_t last; begin < end; begin = last) {
      last = std::min(end, begin + kRowsPerBlock);
      const T* g = data<T>(grad) + begin * columns;
      block.pack(data<T>(x) + begin * width, width, last - begin);
      // The columns that rounding up adds are read from the rows that follow, if there are enough,
      // unless `left` is a copy; nobody reads their sums.
      const bool rounds_up = !std::is_same_v<T, A> || rows - last >= kProductRows;
      block.multiply(true, rounds_up ? sum_rows : columns,
                     left.transposed(g, columns, last - begin, columns), sums, row);
      weight.multiply(false, last - begin, left.rows(g, columns, last - begin, columns),
                      product.get(), row);
      with_simd<T>([&]<class S>(S) SSEPT_INLINE_LAMBDA {
        for (int64_t n = begin; n < last; ++n)
          round_row<S, T>(product + (n - begin) * row, A(1),
                          n < residual_rows ? residual + n * width : nullptr, width,
                          mutable_data<T>(grad_x) + n * width);
      });
    }
  };
  const auto parts = sums_of_parts<A>(rows, rows_per_part(rows, columns), sum_rows * row, add_part);
  add_parts(parts, 0, row, grad_weight, columns, width);
}

// From grad_q and grad_kv on, with a residual for the first rows.
template <class T>
void multiply_gradients(const ProjectionArgs& p, const MultiHeadGradients& g,
                        int64_t residual_rows) {
  const int64_t width = p.width;
  T* const grad_weight = mutable_data<T>(g.grad_weight);
  Panels<T> weights(2 * width, width);
  weights.pack(data<T>(p.q_weight), width, width);
  project_backward(g.grad_q, p.x_q, weights, data<T>(g.grad_out), residual_rows, g.grad_x_q,
                   grad_weight);
  weights.pack(stacked<T>(p.k_weight, p.v_weight).data(), width, 2 * width);
  project_backward<T>(g.grad_kv, p.x_k, weights, nullptr, 0, g.grad_x_k,
                      grad_weight + width * width);
}

}  // namespace ssept::cpu
