// Gradients of weights, gradᵀ · x. cuBLAS splits the rows of so long a product, and launches a
// kernel to add up the parts: here, a kernel that adds up other sums does that, too. Not for wide
// layers, whose parts would take too much memory.
#pragma once
#include "common/dtype.h"
#include "cuda/parts.h"
#include "cuda/products.h"

namespace ssept::cuda {

class WeightParts {
 public:
  // weight = gradᵀ · x; or, where sums<A>() is to be added up, of parts of the rows.
  void multiply(const Products& products, const Tensor& weight, const Tensor& grad,
                const Tensor& x) {
    weight_ = weight;
    // Those of the half types would be rounded.
    const bool is_wide = accumulator_type(x.scalar_type()) == x.scalar_type();
    if (!is_wide || x.size(0) % kParts != 0 || x.size(0) < kLeastRows ||
        weight.numel() > kMostElements)
      return products.multiply(weight, transposed(grad), x);
    parts_ = torch::stable::new_empty(x, {kParts, grad.size(1), x.size(1)});
    products.multiply_parts(*parts_, grad, x);
  }

  template <class A>
  Parts<A> sums() const {
    if (!parts_) return {};
    return {data<A>(*parts_), kParts, weight_->numel(), mutable_data<A>(*weight_),
            weight_->numel()};
  }

 private:
  static constexpr int64_t kParts = 32, kLeastRows = 4096, kMostElements = 512 * 512;
  std::optional<Tensor> weight_, parts_;
};

}  // namespace ssept::cuda
