// `lazy_adam` and `rowwise_adagrad` on CUDA: from tensors to launches.
#include "common/library.h"
#include "cuda/runtime.h"
#include "ops/row_update/args.h"
#include "ops/row_update/launch.h"

namespace ssept::cuda {
namespace {

struct Kernels {
  template <class In>
  static void update(const Tensor& table, const In& in) {
    const DeviceOf device(table);
    check_cuda("row update", launch_update(in, device.note(), device.stream()));
  }
};

}  // namespace
}  // namespace ssept::cuda

SSEPT_LIBRARY_IMPL(SSEPT_CUDA_KEY, m) {
  m.impl("lazy_adam", TORCH_BOX(&ssept::lazy_adam<ssept::cuda::Kernels>));
  m.impl("rowwise_adagrad", TORCH_BOX(&ssept::rowwise_adagrad<ssept::cuda::Kernels>));
}
