// CPU kernels of `gated_residual` and `swiglu`: row by row, in whole vectors.
#include <array>
#include <tuple>

#include "common/library.h"
#include "cpu/panels.h"
#include "cpu/philox.h"
#include "ops/gated_residual/args.h"

namespace ssept::cpu {
namespace {

// What COUNT rows need while they are worked on, each with room for whole vectors.
template <class A, int COUNT>
class Rows {
 public:
  explicit Rows(int64_t width)
      : width_(width),
        row_(whole(width, kMaxLanes<A>)),
        memory_(std::max<int64_t>(1, COUNT * row_)) {
    std::fill_n(memory_.get(), COUNT * row_, A(0));  // behind a row, too
  }
  SSEPT_INLINE A* operator[](int i) const { return memory_ + i * row_; }

  template <class T>
  SSEPT_INLINE void load(int i, const T* x, A scale = 1) const {
    A* const row = (*this)[i];
    for (int64_t c = 0; c < width_; ++c) row[c] = scale * static_cast<A>(x[c]);
  }
  template <class T>
  SSEPT_INLINE void store(int i, T* x) const {
    const A* const row = (*this)[i];
    for (int64_t c = 0; c < width_; ++c) x[c] = static_cast<T>(row[c]);
  }

 private:
  int64_t width_, row_;
  Buffer<A> memory_;
};

// Of sigmoid: its value s and 1 - s, neither of which is a difference of nearly equal numbers.
template <class S, class A>
struct Gate {
  using Vec = typename S::template Vec<A>;
  Vec open, shut;

  SSEPT_INLINE explicit Gate(Vec x) {
    const Vec zero{}, e = exponential<S, A>(x < zero ? x : -x);
    const Vec large = A(1) / (e + A(1)), small = e * large;
    open = x < zero ? small : large;
    shut = x < zero ? large : small;
    open = x == x ? open : x;  // NaN stays
    shut = x == x ? shut : x;
  }
};

template <class S, class T, class A = Accumulator<T>>
SSEPT_INLINE void add_gated(const GatedResidual<T>& in, T* out, int64_t begin, int64_t end) {
  const Rows<A, 3> rows(in.width);
  A *const x = rows[0], *const y = rows[1], *const gate = rows[2];
  RowDropout dropout(in.dropout, in.width, end);
  for (int64_t n = begin; n < end; ++n) {
    const int64_t row = n * in.width;
    rows.load(0, in.x + row);
    rows.load(1, in.y + row, static_cast<A>(in.dropout.scale));
    if (in.gate) rows.load(2, in.gate + row);
    dropout.apply(y, in.width, n);
    for (int64_t i = 0; i < in.width; i += S::template kLanes<A>) {
      const auto of_y = S::load(y + i);
      S::store(x + i,
               S::load(x + i) + (in.gate ? Gate<S, A>(S::load(gate + i)).open * of_y : of_y));
    }
    rows.store(0, out + row);
  }
}

template <class S, class T, class A = Accumulator<T>>
SSEPT_INLINE void add_gated_backward(const GatedResidual<T>& in, T* grad_y, T* grad_gate,
                                     int64_t begin, int64_t end) {
  const Rows<A, 3> rows(in.width);
  A *const grad = rows[0], *const y = rows[1], *const gate = rows[2];
  const A scale = static_cast<A>(in.dropout.scale);
  RowDropout dropout(in.dropout, in.width, end);
  for (int64_t n = begin; n < end; ++n) {
    const int64_t row = n * in.width;
    rows.load(0, in.x + row, scale);
    if (in.gate) {
      rows.load(1, in.y + row);
      rows.load(2, in.gate + row);
      dropout.apply(y, in.width, n);
      for (int64_t i = 0; i < in.width; i += S::template kLanes<A>) {
        const Gate<S, A> at(S::load(gate + i));
        S::store(grad + i, S::load(grad + i) * at.open);
        S::store(gate + i, S::load(grad + i) * at.shut * S::load(y + i));
      }
      rows.store(2, grad_gate + row);
    }
    dropout.apply(grad, in.width, n);
    rows.store(0, grad_y + row);
  }
}

template <class S, class T, class A = Accumulator<T>>
SSEPT_INLINE void swiglu_rows(const Swiglu<T>& in, T* out, int64_t begin, int64_t end) {
  const Rows<A, 2> rows(in.width);
  A *const a = rows[0], *const b = rows[1];
  RowDropout dropout(in.dropout, in.width, end);
  for (int64_t n = begin; n < end; ++n) {
    const T* const u = in.u + 2 * n * in.width;
    rows.load(0, u);
    rows.load(1, u + in.width, static_cast<A>(in.dropout.scale));
    for (int64_t i = 0; i < in.width; i += S::template kLanes<A>) {
      const auto of_a = S::load(a + i);
      S::store(a + i, of_a * Gate<S, A>(of_a).open * S::load(b + i));
    }
    dropout.apply(a, in.width, n);
    rows.store(0, out + n * in.width);
  }
}

template <class S, class T, class A = Accumulator<T>>
SSEPT_INLINE void swiglu_rows_backward(const Swiglu<T>& in, const T* grad, T* grad_u, int64_t begin,
                                       int64_t end) {
  const Rows<A, 3> rows(in.width);
  A *const a = rows[0], *const b = rows[1], *const g = rows[2];
  RowDropout dropout(in.dropout, in.width, end);
  for (int64_t n = begin; n < end; ++n) {
    const int64_t row = 2 * n * in.width;
    rows.load(0, in.u + row);
    rows.load(1, in.u + row + in.width);
    rows.load(2, grad + n * in.width, static_cast<A>(in.dropout.scale));
    dropout.apply(g, in.width, n);
    for (int64_t i = 0; i < in.width; i += S::template kLanes<A>) {
      const auto of_a = S::load(a + i);
      const Gate<S, A> at(of_a);
      const auto gated = S::load(g + i) * at.open;
      S::store(a + i, gated * (of_a * at.shut + A(1)) * S::load(b + i));
      S::store(b + i, gated * of_a);
    }
    rows.store(0, grad_u + row);
    rows.store(1, grad_u + row + in.width);
  }
}

// Calls f.template operator()<S>(begin, end) on parts of the rows.
template <class F>
void for_rows(int64_t num_rows, int64_t width, F&& f) {
  if (width == 0) return;  // however many rows
  torch::stable::parallel_for(0, num_rows, grain(4 * width), [&](int64_t begin, int64_t end) {
    with_simd([&]<class S>(S) SSEPT_INLINE_LAMBDA { f.template operator()<S>(begin, end); });
  });
}

Tensor gated_residual(const Tensor& x, const Tensor& y, const std::optional<Tensor>& gate,
                      double dropout_p, const std::optional<Tensor>& seed, int64_t site) {
  const GatedResidualArgs args("x", x, y, gate, dropout_p, seed, site);
  const Tensor out = args.new_rows();
  dispatch_floating("x", args.type, [&]<class T>() {
    const auto in = args.kernel_args<T>();
    T* const to = mutable_data<T>(out);
    for_rows(in.num_rows, in.width, [&]<class S>(int64_t begin, int64_t end) SSEPT_INLINE_LAMBDA {
      add_gated<S>(in, to, begin, end);
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> gated_residual_backward(
    const Tensor& grad, const std::optional<Tensor>& y, const std::optional<Tensor>& gate,
    double dropout_p, const std::optional<Tensor>& seed, int64_t site) {
  const GatedResidualArgs args("grad", grad, y, gate, dropout_p, seed, site);
  const Tensor grad_y = args.new_rows(), grad_gate = args.new_gate();
  dispatch_floating("grad", args.type, [&]<class T>() {
    const auto in = args.kernel_args<T>();
    T *const to_y = mutable_data<T>(grad_y), *const to_gate = mutable_data<T>(grad_gate);
    for_rows(in.num_rows, in.width, [&]<class S>(int64_t begin, int64_t end) SSEPT_INLINE_LAMBDA {
      add_gated_backward<S>(in, to_y, to_gate, begin, end);
    });
  });
  return {grad_y, grad_gate};
}

Tensor swiglu(const Tensor& u, double dropout_p, const std::optional<Tensor>& seed, int64_t site) {
  const SwigluArgs args(u, dropout_p, seed, site);
  const Tensor out = args.new_rows(u.size(1) / 2);
  dispatch_floating("u", args.type, [&]<class T>() {
    const auto in = args.kernel_args<T>();
    T* const to = mutable_data<T>(out);
    for_rows(in.num_rows, in.width, [&]<class S>(int64_t begin, int64_t end) SSEPT_INLINE_LAMBDA {
      swiglu_rows<S>(in, to, begin, end);
    });
  });
  return out;
}

Tensor swiglu_backward(const Tensor& grad, const Tensor& u, double dropout_p,
                       const std::optional<Tensor>& seed, int64_t site) {
  const SwigluArgs args(u, dropout_p, seed, site);
  const Tensor g = args.contiguous_grad(grad);
  const Tensor grad_u = args.new_rows(u.size(1));
  dispatch_floating("u", args.type, [&]<class T>() {
    const auto in = args.kernel_args<T>();
    T* const to = mutable_data<T>(grad_u);
    for_rows(in.num_rows, in.width, [&]<class S>(int64_t begin, int64_t end) SSEPT_INLINE_LAMBDA {
      swiglu_rows_backward<S>(in, data<T>(g), to, begin, end);
    });
  });
  return grad_u;
}

}  // namespace
}  // namespace ssept::cpu

SSEPT_LIBRARY_IMPL(CPU, m) {
  m.impl("gated_residual", TORCH_BOX(&ssept::cpu::gated_residual));
  m.impl("gated_residual_backward", TORCH_BOX(&ssept::cpu::gated_residual_backward));
  m.impl("swiglu", TORCH_BOX(&ssept::cpu::swiglu));
  m.impl("swiglu_backward", TORCH_BOX(&ssept::cpu::swiglu_backward));
}
