// The products of `multi_head_attention` in float32 and float64, a block of rows at a time. For the
// half types, torch's products are the faster ones.
#pragma once
#include "cpu/panels.h"
#include "ops/causal_attention/args.h"

namespace ssept::cpu {

// Both weights, (2 width, width), for one product.
template <class A>
std::vector<A> stacked(const Tensor& k_weight, const Tensor& v_weight) {
  std::vector<A> both(data<A>(k_weight), data<A>(k_weight) + k_weight.numel());
  both.insert(both.end(), data<A>(v_weight), data<A>(v_weight) + v_weight.numel());
  return both;
}

// x · weightᵀ, whose columns go to the products in turn: to each as many as x has.
template <class A>
void project(const Tensor& x, const A* weight, std::initializer_list<Tensor> products) {
  const int64_t width = x.size(1), columns = width * static_cast<int64_t>(products.size());
  const int64_t row = whole(columns, kMaxLanes<A>);
  Panels<A> panels(width, columns);
  panels.pack_transposed(weight, width);
  const int64_t least_rows = std::max(kRowsPerBlock / 4, grain(width * columns));
  torch::stable::parallel_for(0, x.size(0), least_rows, [&](int64_t first, int64_t last) {
    const Buffer<A> block(kRowsPerBlock * row);
    for (int64_t begin = first, end; begin < last; begin = end) {
      end = std::min(last, begin + kRowsPerBlock);
      panels.multiply(false, end - begin, data<A>(x) + begin * width, width, 1, block.get(), row);
      const A* from = block.get();
      for (const Tensor& product : products) {
        for (int64_t n = begin; n < end; ++n)
          std::copy_n(from + (n - begin) * row, width, mutable_data<A>(product) + n * width);
        from += width;
      }
    }
  });
}

// From the gradient of x · weightᵀ, (N, columns), to that of x, which includes the first rows of
// `residual`, and that of the weight, (columns, width).
template <class A>
void project_backward(const Tensor& grad, const Tensor& x, const Panels<A>& weight,
                      const A* residual, int64_t residual_rows, const Tensor& grad_x,
                      A* grad_weight) {
  const int64_t rows = x.size(0), width = x.size(1), columns = grad.size(1);
  const int64_t row = whole(width, kMaxLanes<A>), sum_rows = whole(columns, kProductRows);
  const auto add_part = [&](A* sums, int64_t begin, int64_t end) {
    Panels<A> block(kRowsPerBlock, width);
    const Buffer<A> product(kRowsPerBlock * row);
    for (int64_t last; begin < end; begin = last) {
      last = std::min(end, begin + kRowsPerBlock);
      const A* g = data<A>(grad) + begin * columns;
      block.pack(data<A>(x) + begin * width, width, last - begin);
      // Columns that are rounded up are read from the next rows, as long as there are enough.
      block.multiply(true, rows - last < kProductRows ? columns : sum_rows, g, 1, columns, sums,
                     row);
      weight.multiply(false, last - begin, g, columns, 1, product.get(), row);
      for (int64_t n = begin; n < last; ++n) {
        A* const to = mutable_data<A>(grad_x) + n * width;
        std::copy_n(product + (n - begin) * row, width, to);
        for (int64_t i = 0; n < residual_rows && i < width; ++i) to[i] += residual[n * width + i];
      }
    }
  };
  const auto parts = sums_of_parts<A>(rows, rows_per_part(columns), sum_rows * row, add_part);
  add_parts(parts, 0, row, grad_weight, columns, width);
}

// From grad_q and grad_kv on, with a residual for the first rows.
template <class A>
void multiply_gradients(const ProjectionArgs& p, const MultiHeadGradients& g,
                        int64_t residual_rows) {
  const int64_t width = p.width;
  A* const grad_weight = mutable_data<A>(g.grad_weight);
  Panels<A> weights(2 * width, width);
  weights.pack(data<A>(p.q_weight), width, width);
  project_backward(g.grad_q, p.x_q, weights, data<A>(g.grad_out), residual_rows, g.grad_x_q,
                   grad_weight);
  weights.pack(stacked<A>(p.k_weight, p.v_weight).data(), width, 2 * width);
  project_backward<A>(g.grad_kv, p.x_k, weights, nullptr, 0, g.grad_x_k,
                      grad_weight + width * width);
}

}  // namespace ssept::cpu
