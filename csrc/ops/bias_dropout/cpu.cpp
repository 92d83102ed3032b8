// CPU kernels of `bias_dropout`: what follows a matrix product, in one pass over it.
#include <limits>
#include <tuple>
#include <vector>

#include "common/library.h"
#include "cpu/philox.h"
#include "cpu/vector_ops.h"
#include "ops/bias_dropout/args.h"

namespace ssept::cpu {
namespace {

// Rows whose bias gradients are summed together first: fixed, so that sums do not depend on the
// number of threads.
constexpr int64_t kRowsPerPart = 512;

template <class T, class A = Accumulator<T>>
SSEPT_SIMD_CLONES void forward(const BiasDropout<T>& in, T* out, int64_t begin, int64_t end) {
  const A scale = static_cast<A>(in.dropout.scale);
  const A floor = in.relu ? A(0) : -std::numeric_limits<A>::infinity();
  std::vector<A> row(in.width);
  A* y = row.data();
  RowDropout dropout(in.dropout, in.width, end);
  for (int64_t n = begin; n < end; ++n) {
    const T* x = in.x + n * in.width;
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

// grad_x of rows [begin, end), and their sum. Where there is a ReLU, what it or dropout set to zero
// shows in `out`.
template <class T, class A = Accumulator<T>>
SSEPT_SIMD_CLONES void backward(const BiasDropoutBackward<T>& s, T* grad_x, A* sum, int64_t begin,
                                int64_t end) {
  const A scale = static_cast<A>(s.dropout.scale);
  std::vector<A> row(s.width);
  A* g = row.data();
  DropoutSite unseen = s.dropout;
  if (s.relu) unseen.seed = nullptr;  // what it has dropped is zero in `out`
  RowDropout dropout(unseen, s.width, end);
  std::fill_n(sum, s.width, A(0));
  for (int64_t n = begin; n < end; ++n) {
    for (int64_t i = 0; i < s.width; ++i) g[i] = scale * static_cast<A>(s.grad[n * s.width + i]);
    if (s.relu)
      for (int64_t i = 0; i < s.width; ++i)
        g[i] = static_cast<A>(s.out[n * s.width + i]) > 0 ? g[i] : A(0);
    dropout.apply(g, s.width, n);
    for (int64_t i = 0; i < s.width; ++i) {
      sum[i] += g[i];
      grad_x[n * s.width + i] = static_cast<T>(g[i]);
    }
  }
}

Tensor bias_dropout(const Tensor& x, const Tensor& bias, const std::optional<Tensor>& residual,
                    bool relu, double dropout_p, const std::optional<Tensor>& seed, int64_t site) {
  const BiasDropoutArgs args(x, bias, residual, relu, dropout_p, seed, site);
  const Tensor out = torch::stable::new_empty(x, {args.num_rows, args.width});
  if (args.width == 0) return out;  // however many rows: they take no memory
  dispatch_floating("x", args.type, [&]<class T>() {
    const auto in = args.kernel_args<T>();
    torch::stable::parallel_for(0, in.num_rows, grain(in.width), [&](int64_t begin, int64_t end) {
      forward<T>(in, mutable_data<T>(out), begin, end);
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> bias_dropout_backward(const Tensor& grad, const Tensor& out, bool relu,
                                                 double dropout_p,
                                                 const std::optional<Tensor>& seed, int64_t site) {
  const BiasDropoutBackwardArgs args(grad, out, relu, dropout_p, seed, site);
  const int64_t num_rows = args.num_rows, width = args.width;
  const Tensor grad_x = torch::stable::new_empty(grad, {num_rows, width});
  const Tensor grad_bias = torch::stable::new_zeros(grad, {width}, accumulator_type(args.type));
  if (width == 0) return {grad_x, grad_bias};
  dispatch_floating("out", args.type, [&]<class T>() {
    using A = Accumulator<T>;
    const int64_t parts = (num_rows + kRowsPerPart - 1) / kRowsPerPart;
    std::vector<A> sums(parts * width);
    torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part)
        backward<T>(args.kernel_args<T>(), mutable_data<T>(grad_x), sums.data() + part * width,
                    part * kRowsPerPart, std::min(num_rows, (part + 1) * kRowsPerPart));
    });
    A* total = mutable_data<A>(grad_bias);
    for (int64_t part = 0; part < parts; ++part)
      for (int64_t i = 0; i < width; ++i) total[i] += sums[part * width + i];
  });
  return {grad_x, grad_bias};
}

}  // namespace
}  // namespace ssept::cpu

SSEPT_LIBRARY_IMPL(CPU, m) {
  m.impl("bias_dropout", TORCH_BOX(&ssept::cpu::bias_dropout));
  m.impl("bias_dropout_backward", TORCH_BOX(&ssept::cpu::bias_dropout_backward));
}
