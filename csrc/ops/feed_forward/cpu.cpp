// CPU kernels of `feed_forward`. float32 and float64 go through both layers a block of rows at a
// time, with products of our own; for the half types, torch's products are the faster ones.
#include <limits>
#include <vector>

#include "common/library.h"
#include "cpu/panels.h"
#include "cpu/philox.h"
#include "cpu/row_norm.h"
#include "cpu/vector_ops.h"
#include "ops/feed_forward/steps.h"

namespace ssept::cpu {
namespace {

// What follows the product of rows [begin, end), of which `x` is the first.
template <class T, class A = Accumulator<T>>
SSEPT_SIMD_CLONES void finish(const BiasDropout<T>& in, const T* x, int64_t x_row, T* out,
                              int64_t begin, int64_t end) {
  const A scale = static_cast<A>(in.dropout.scale);
  const A floor = in.relu ? A(0) : -std::numeric_limits<A>::infinity();
  std::vector<A> row(in.width);
  A* y = row.data();
  RowDropout dropout(in.dropout, in.width, end);
  for (int64_t n = begin; n < end; ++n, x += x_row) {
    for (int64_t i = 0; i < in.width; ++i) {
      const A value = scale * (static_cast<A>(x[i]) + static_cast<A>(in.bias[i]));
      y[i] = value < floor ? floor : value;  // keeps NaN
    }
    dropout.apply(y, in.width, n);
    if (in.residual)
      for (int64_t i = 0; i < in.width; ++i) y[i] += static_cast<A>(in.residual[n * in.width + i]);
    for (int64_t i = 0; i < in.width; ++i) out[n * in.width + i] = static_cast<T>(y[i]);
  }
}

// The gradient of the product of rows [begin, end), of which `grad` and `grad_x` are the first, and
// adds it up in `sum`. Where there is a ReLU, what it or dropout set to zero shows in `out`.
template <class T, class A = Accumulator<T>>
SSEPT_SIMD_CLONES void start(const BiasDropoutBackward<T>& in, const T* grad, int64_t grad_row,
                             T* grad_x, int64_t grad_x_row, A* sum, int64_t begin, int64_t end) {
  const A scale = static_cast<A>(in.dropout.scale);
  std::vector<A> row(in.width);
  A* g = row.data();
  DropoutSite unseen = in.dropout;
  if (in.out) unseen.seed = nullptr;  // what it has dropped is zero in `out`
  RowDropout dropout(unseen, in.width, end);
  for (int64_t n = begin; n < end; ++n, grad += grad_row, grad_x += grad_x_row) {
    for (int64_t i = 0; i < in.width; ++i) g[i] = scale * static_cast<A>(grad[i]);
    if (in.out)
      for (int64_t i = 0; i < in.width; ++i)
        g[i] = static_cast<A>(in.out[n * in.width + i]) > 0 ? g[i] : A(0);
    dropout.apply(g, in.width, n);
    add_scaled(sum, A(1), g, in.width);
    for (int64_t i = 0; i < in.width; ++i) grad_x[i] = static_cast<T>(g[i]);
  }
}

// Of rows [begin, end) of a result.
template <class T>
void normalise_rows(const ResultNorm<T>& in, const T* x, int64_t width, int64_t begin,
                    int64_t end) {
  if (in.gamma == nullptr) return;
  with_simd([&]<class S>(S) SSEPT_INLINE_LAMBDA {
    for (int64_t row = begin * width; row < end * width; row += width)
      normalise<S>(x + row, in.gamma, in.beta, width, static_cast<Accumulator<T>>(in.eps),
                   in.out + row);
  });
}

template <class A>
void forward_fused(const FeedForward& args) {
  const int64_t width = args.width, inner = args.inner;
  const auto after_first = args.after_first<A>(), after_second = args.after_second<A>();
  const auto norm = args.norm<A>();
  A* const hidden = mutable_data<A>(args.hidden);
  Panels<A> weight1(width, inner), weight2(inner, width);
  weight1.pack_transposed(data<A>(args.weight1), width);
  weight2.pack_transposed(data<A>(args.weight2), inner);
  const int64_t row = whole(std::max(width, inner), kMaxLanes<A>);
  const int64_t least_rows = std::max(kRowsPerBlock / 4, grain(width * inner));
  torch::stable::parallel_for(0, args.num_rows, least_rows, [&](int64_t first, int64_t last) {
    const Buffer<A> product(kRowsPerBlock * row);
    for (int64_t begin = first, end; begin < last; begin = end) {
      end = std::min(last, begin + kRowsPerBlock);
      const A* x = data<A>(args.x) + begin * width;
      weight1.multiply(false, end - begin, x, width, 1, product.get(), row);
      finish(after_first, product.get(), row, hidden, begin, end);
      weight2.multiply(false, end - begin, hidden + begin * inner, inner, 1, product.get(), row);
      finish(after_second, product.get(), row, mutable_data<A>(args.out), begin, end);
      normalise_rows(norm, data<A>(args.out), width, begin, end);
    }
  });
}

// Where a part's sums lie one after another: those of weights as (out, in), with room for whole
// vectors and for kProductRows.
template <class A>
struct Sums {
  int64_t row1, row2;  // elements in a row of weight1, of weight2
  int64_t weight2, bias1, bias2, norm, end;

  Sums(int64_t width, int64_t inner, bool has_norm)
      : row1(whole(width, kMaxLanes<A>)),
        row2(whole(inner, kMaxLanes<A>)),
        weight2(whole(inner, kProductRows) * row1),
        bias1(weight2 + whole(width, kProductRows) * row2),
        bias2(bias1 + inner),
        norm(bias2 + width),
        end(norm + (has_norm ? 2 * width : 0)) {}
};

// Rows [begin, end), a block at a time.
template <class A>
void backward_part(const FeedForwardBackward& args, const Panels<A>& weight1,
                   const Panels<A>& weight2, const Sums<A>& at, A* sums, int64_t begin,
                   int64_t end) {
  const int64_t width = args.width, inner = args.inner;
  const auto before_first = args.before_first<A>(), before_second = args.before_second<A>();
  const std::vector<A> no_bias(width);
  const auto norm = args.has_norm ? args.before_norm<A>() : RowNormBackward<A>{};
  const A* const grad = args.has_norm ? norm.grad_x : data<A>(args.grad);
  const A* const residual = args.x_is_residual ? grad : nullptr;
  const BiasDropout<A> after_last{no_bias.data(), residual,      {nullptr, 0, 0, 1},
                                  false,          args.num_rows, width};
  std::vector<A> grad_out(kRowsPerBlock * at.row1), grad_hidden(kRowsPerBlock * at.row2);
  Panels<A> x(kRowsPerBlock, width), hidden(kRowsPerBlock, inner);
  for (int64_t last; begin < end; begin = last) {
    last = std::min(end, begin + kRowsPerBlock);
    A *const out = grad_out.data(), *const in = grad_hidden.data();
    if (args.has_norm) normalise_backward(norm, sums + at.norm, begin, last);
    start(before_second, grad + begin * width, width, out, at.row1, sums + at.bias2, begin, last);
    hidden.pack(data<A>(args.hidden) + begin * inner, inner, last - begin);
    hidden.multiply(true, whole(width, kProductRows), out, 1, at.row1, sums + at.weight2, at.row2);
    weight2.multiply(false, last - begin, out, at.row1, 1, in, at.row2);
    start(before_first, in, at.row2, in, at.row2, sums + at.bias1, begin, last);
    x.pack(data<A>(args.x) + begin * width, width, last - begin);
    x.multiply(true, whole(inner, kProductRows), in, 1, at.row2, sums, at.row1);
    weight1.multiply(false, last - begin, in, at.row2, 1, out, at.row1);
    finish(after_last, out, at.row1, mutable_data<A>(args.grad_x), begin, last);
  }
}

template <class A>
void backward_fused(const FeedForwardBackward& args) {
  const int64_t width = args.width, inner = args.inner;
  Panels<A> weight1(inner, width), weight2(width, inner);
  weight1.pack(data<A>(args.weight1), width, inner);
  weight2.pack(data<A>(args.weight2), inner, width);
  const Sums<A> at(width, inner, args.has_norm);
  const auto parts = sums_of_parts<A>(args.num_rows, rows_per_part(width + inner), at.end,
                                      [&](A* sums, int64_t begin, int64_t end) {
                                        backward_part(args, weight1, weight2, at, sums, begin, end);
                                      });
  add_parts(parts, 0, at.row1, mutable_data<A>(args.grad_weight1), inner, width);
  add_parts(parts, at.weight2, at.row2, mutable_data<A>(args.grad_weight2), width, inner);
  add_parts(parts, at.bias1, inner, mutable_data<A>(args.grad_bias1), 1, inner);
  add_parts(parts, at.bias2, width, mutable_data<A>(args.grad_bias2), 1, width);
  if (!args.has_norm) return;
  add_parts(parts, at.norm, width, mutable_data<A>(args.grad_gamma), 1, width);
  add_parts(parts, at.norm + width, width, mutable_data<A>(args.grad_beta), 1, width);
}

// The steps of the half types.
template <class T>
class Steps {
 public:
  using A = Accumulator<T>;

  Steps(const FeedForwardArgs& args, int64_t num_sums)
      : num_sums_(num_sums),
        num_parts_((args.num_rows + kRowsPerPart - 1) / kRowsPerPart),
        sums_(num_parts_ * num_sums) {}

  const Products& products() const { return kCpuProducts; }

  void multiply_weight(const Tensor& weight, const Tensor& grad, const Tensor& x) {
    products().multiply(weight, transposed(grad), x);
  }

  void finish(const BiasDropout<T>& in, const ResultNorm<T>& norm, T* x) {
    torch::stable::parallel_for(0, in.num_rows, grain(in.width), [&](int64_t begin, int64_t end) {
      cpu::finish(in, x + begin * in.width, in.width, x, begin, end);
      normalise_rows(norm, x, in.width, begin, end);
    });
  }

  void start(const BiasDropoutBackward<T>& in, const T* grad, T* grad_x, T* copy,
             int64_t first_sum) {
    for_parts(in, first_sum, [&](A* sums, int64_t begin, int64_t end) {
      const int64_t from = begin * in.width;
      if (copy) std::copy(grad + from, grad + end * in.width, copy + from);
      cpu::start(in, grad + from, in.width, grad_x + from, in.width, sums, begin, end);
    });
  }

  void start_after_norm(const BiasDropoutBackward<T>& in, const RowNormBackward<T>& norm, T* grad_x,
                        int64_t first_sum) {
    for_parts(in, first_sum, [&](A* sums, int64_t begin, int64_t end) {
      const int64_t from = begin * in.width;
      normalise_backward(norm, sums + in.width, begin, end);
      cpu::start(in, norm.grad_x + from, in.width, grad_x + from, in.width, sums, begin, end);
    });
  }

  void finish_sums(const FeedForwardBackward& args) {
    const A* from = sums_.data();
    for (const auto& [sum, columns] : args.sums<A>()) {
      for (int64_t i = 0; i < columns; ++i) {
        sum[i] = 0;
        for (int64_t part = 0; part < num_parts_; ++part) sum[i] += from[part * num_sums_ + i];
      }
      from += columns;
    }
  }

 private:
  static constexpr int64_t kRowsPerPart = 512;

  // Calls f(sums, begin, end) on each part of the rows.
  template <class F>
  void for_parts(const BiasDropoutBackward<T>& in, int64_t first_sum, F&& f) {
    torch::stable::parallel_for(0, num_parts_, 1, [&](int64_t first, int64_t last) {
      for (int64_t part = first; part < last; ++part)
        f(sums_.data() + part * num_sums_ + first_sum, part * kRowsPerPart,
          std::min(in.num_rows, (part + 1) * kRowsPerPart));
    });
  }

  int64_t num_sums_, num_parts_;
  std::vector<A> sums_;
};

std::tuple<Tensor, Tensor, Tensor> feed_forward(const Tensor& x, const Tensor& weight1,
                                                const Tensor& bias1, const Tensor& weight2,
                                                const Tensor& bias2, double dropout_p,
                                                const std::optional<Tensor>& seed, int64_t site,
                                                const std::optional<Tensor>& residual,
                                                const std::optional<Tensor>& gamma,
                                                const std::optional<Tensor>& beta, double eps) {
  const FeedForward args(x, weight1, bias1, weight2, bias2, dropout_p, seed, site, residual, gamma,
                         beta, eps);
  if (args.width == 0 && args.inner == 0) return args.results();  // however many rows
  dispatch_floating("x", args.type, [&]<class T>() {
    if constexpr (std::is_same_v<T, Accumulator<T>>)
      forward_fused<T>(args);
    else
      forward_by_steps<T>(Steps<T>(args, 0), args);
  });
  return args.results();
}

FeedForwardBackward::Results feed_forward_backward(
    const std::optional<Tensor>& grad, const Tensor& x, const Tensor& hidden, const Tensor& weight1,
    const Tensor& weight2, double dropout_p, const std::optional<Tensor>& seed, int64_t site,
    bool x_is_residual, const std::optional<Tensor>& out, const std::optional<Tensor>& grad_normal,
    const std::optional<Tensor>& gamma, double eps) {
  const FeedForwardBackward args(grad, x, hidden, weight1, weight2, dropout_p, seed, site,
                                 x_is_residual, out, grad_normal, gamma, eps);
  if (args.width == 0 && args.inner == 0) return args.results();
  dispatch_floating("x", args.type, [&]<class T>() {
    if constexpr (std::is_same_v<T, Accumulator<T>>)
      backward_fused<T>(args);
    else
      backward_by_steps<T>(Steps<T>(args, args.num_sums()), args);
  });
  return args.results();
}

}  // namespace
}  // namespace ssept::cpu

SSEPT_LIBRARY_IMPL(CPU, m) {
  m.impl("feed_forward", TORCH_BOX(&ssept::cpu::feed_forward));
  m.impl("feed_forward_backward", TORCH_BOX(&ssept::cpu::feed_forward_backward));
}
