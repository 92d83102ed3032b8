// CPU kernels of `feed_forward`, which take a block of rows at a time through both layers.
#include <limits>
#include <vector>

#include "common/library.h"
#include "cpu/panels.h"
#include "cpu/philox.h"
#include "cpu/row_norm.h"
#include "cpu/vector_ops.h"
#include "ops/feed_forward/args.h"

namespace ssept::cpu {
namespace {

// What follows the product of rows [begin, end), of which `x` is the first.
template <class T, class A = Accumulator<T>>
void finish(const BiasDropout<T>& in, const A* x, int64_t x_row, T* out, int64_t begin,
            int64_t end) {
  const A scale = static_cast<A>(in.dropout.scale);
  const A floor = in.relu ? A(0) : -std::numeric_limits<A>::infinity();
  RowDropout dropout(in.dropout, in.width, end);
  with_simd<T>([&]<class S>(S) SSEPT_INLINE_LAMBDA {
    for (int64_t n = begin; n < end; ++n, x += x_row) {
      const uint32_t* const words = dropout.words(n);
      const int64_t row = n * in.width;
      write_lanes<S>(in.width, out + row, [&]<class L>(L, int64_t i) SSEPT_INLINE_LAMBDA {
        using Vec = typename L::template Vec<A>;
        const Vec value = (L::load(x + i) + load_wide<L>(in.bias + i)) * scale;
        const Vec kept = dropped<L, A>(value < Vec{} + floor ? Vec{} + floor : value,  // keeps NaN
                                       words ? words + i : nullptr, in.dropout.threshold);
        return in.residual ? kept + load_wide<L>(in.residual + row + i) : kept;
      });
    }
  });
}

// The gradient of the product of rows [begin, end), of which `grad` and `grad_x` are the first, and
// adds it up in `sum`. Where there is a ReLU, what it or dropout set to zero shows in `out`.
template <class T, class G, class A = Accumulator<T>>
void start(const BiasDropoutBackward<T>& in, const G* grad, int64_t grad_row, T* grad_x,
           int64_t grad_x_row, A* sum, int64_t begin, int64_t end) {
  const A scale = static_cast<A>(in.dropout.scale);
  DropoutSite unseen = in.dropout;
  if (in.out) unseen.seed = nullptr;  // what it has dropped is zero in `out`
  RowDropout dropout(unseen, in.width, end);
  with_simd<T>([&]<class S>(S) SSEPT_INLINE_LAMBDA {
    for (int64_t n = begin; n < end; ++n, grad += grad_row, grad_x += grad_x_row) {
      const uint32_t* const words = dropout.words(n);
      add_lanes<S>(in.width, sum, [&]<class L>(L, int64_t i) SSEPT_INLINE_LAMBDA {
        using Vec = typename L::template Vec<A>;
        Vec g = load_wide<L>(grad + i) * scale;
        if (in.out) g = load_wide<L>(in.out + n * in.width + i) > Vec{} ? g : Vec{};
        g = dropped<L, A>(g, words ? words + i : nullptr, in.dropout.threshold);
        store_rounded<L>(grad_x + i, g);
        return g;
      });
    }
  });
}

// Of rows [begin, end) of a result.
template <class T>
void normalise_rows(const ResultNorm<T>& in, const T* x, int64_t width, int64_t begin,
                    int64_t end) {
  if (in.gamma == nullptr) return;
  with_simd<T>([&]<class S>(S) SSEPT_INLINE_LAMBDA {
    for (int64_t row = begin * width; row < end * width; row += width)
      normalise<S>(x + row, in.gamma, in.beta, width, static_cast<Accumulator<T>>(in.eps),
                   in.out + row);
  });
}

template <class T, class A = Accumulator<T>>
void forward(const FeedForward& args) {
  const int64_t width = args.width, inner = args.inner;
  const auto after_first = args.after_first<T>(), after_second = args.after_second<T>();
  const auto norm = args.norm<T>();
  T *const hidden = mutable_data<T>(args.hidden), *const out = mutable_data<T>(args.out);
  Panels<T> weight1(width, inner), weight2(inner, width);
  weight1.pack_transposed(data<T>(args.weight1), width);
  weight2.pack_transposed(data<T>(args.weight2), inner);
  const int64_t columns = std::max(width, inner), row = whole(columns, kMaxLanes<A>);
  for_each_block<T>(
      args.num_rows, columns, row, [&](int64_t begin, int64_t end, const auto& memory) {
        const int64_t rows = end - begin;
        A* const product = memory.product.get();
        const T* const x = data<T>(args.x) + begin * width;
        weight1.multiply(false, rows, memory.left.rows(x, width, rows, width), product, row);
        finish(after_first, product, row, hidden, begin, end);
        weight2.multiply(false, rows, memory.left.rows(hidden + begin * inner, inner, rows, inner),
                         product, row);
        finish(after_second, product, row, out, begin, end);
        normalise_rows(norm, out, width, begin, end);
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
template <class T, class A = Accumulator<T>>
void backward_part(const FeedForwardBackward& args, const Panels<T>& weight1,
                   const Panels<T>& weight2, const Sums<A>& at, A* sums, int64_t begin,
                   int64_t end) {
  const int64_t width = args.width, inner = args.inner;
  const auto before_first = args.before_first<T>(), before_second = args.before_second<T>();
  const std::vector<T> no_bias(width);
  const auto norm = args.has_norm ? args.before_norm<T>() : RowNormBackward<T>{};
  const T* const grad = args.has_norm ? norm.grad_x : data<T>(args.grad);
  const T* const residual = args.x_is_residual ? grad : nullptr;
  const BiasDropout<T> after_last{no_bias.data(), residual,      {nullptr, 0, 0, 1},
                                  false,          args.num_rows, width};
  // With columns of zeros behind those of a row, up to whole kProductRows.
  std::vector<T> grad_out(kRowsPerBlock * at.row1), grad_hidden(kRowsPerBlock * at.row2);
  T *const out = grad_out.data(), *const in = grad_hidden.data();
  const Buffer<A> product(kRowsPerBlock * std::max(at.row1, at.row2));
  Panels<T> x(kRowsPerBlock, width), hidden(kRowsPerBlock, inner);
  const LeftSideMaker<T> left(kRowsPerBlock, whole(std::max(width, inner), kProductRows));
  for (int64_t last; begin < end; begin = last) {
    last = std::min(end, begin + kRowsPerBlock);
    const int64_t rows = last - begin, out_columns = whole(width, kProductRows);
    const int64_t in_columns = whole(inner, kProductRows);
    if (args.has_norm) normalise_backward(norm, sums + at.norm, begin, last);
    start(before_second, grad + begin * width, width, out, at.row1, sums + at.bias2, begin, last);
    hidden.pack(data<T>(args.hidden) + begin * inner, inner, rows);
    hidden.multiply(true, out_columns, left.transposed(out, at.row1, rows, out_columns),
                    sums + at.weight2, at.row2);
    weight2.multiply(false, rows, left.rows(out, at.row1, rows, width), product.get(), at.row2);
    start(before_first, product.get(), at.row2, in, at.row2, sums + at.bias1, begin, last);
    x.pack(data<T>(args.x) + begin * width, width, rows);
    x.multiply(true, in_columns, left.transposed(in, at.row2, rows, in_columns), sums, at.row1);
    weight1.multiply(false, rows, left.rows(in, at.row2, rows, inner), product.get(), at.row1);
    finish(after_last, product.get(), at.row1, mutable_data<T>(args.grad_x), begin, last);
  }
}

template <class T, class A = Accumulator<T>>
void backward(const FeedForwardBackward& args) {
  const int64_t width = args.width, inner = args.inner;
  Panels<T> weight1(inner, width), weight2(width, inner);
  weight1.pack(data<T>(args.weight1), width, inner);
  weight2.pack(data<T>(args.weight2), inner, width);
  const Sums<A> at(width, inner, args.has_norm);
  const auto parts = sums_of_parts<A>(args.num_rows, rows_per_part(args.num_rows, width + inner),
                                      at.end, [&](A* sums, int64_t begin, int64_t end) {
                                        backward_part(args, weight1, weight2, at, sums, begin, end);
                                      });
  add_parts(parts, 0, at.row1, mutable_data<T>(args.grad_weight1), inner, width);
  add_parts(parts, at.weight2, at.row2, mutable_data<T>(args.grad_weight2), width, inner);
  add_parts(parts, at.bias1, inner, mutable_data<A>(args.grad_bias1), 1, inner);
  add_parts(parts, at.bias2, width, mutable_data<A>(args.grad_bias2), 1, width);
  if (!args.has_norm) return;
  add_parts(parts, at.norm, width, mutable_data<A>(args.grad_gamma), 1, width);
  add_parts(parts, at.norm + width, width, mutable_data<A>(args.grad_beta), 1, width);
}

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
  dispatch_floating("x", args.type, [&]<class T>() { forward<T>(args); });
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
  dispatch_floating("x", args.type, [&]<class T>() { backward<T>(args); });
  return args.results();
}

}  // namespace
}  // namespace ssept::cpu

SSEPT_LIBRARY_IMPL(CPU, m) {
  m.impl("feed_forward", TORCH_BOX(&ssept::cpu::feed_forward));
  m.impl("feed_forward_backward", TORCH_BOX(&ssept::cpu::feed_forward_backward));
}
