// The Python module `_C`: importing it registers the ops; it offers the batch sampler and says how
// it was built.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <climits>
#include <cstdlib>
#include <map>
#include <string>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "cpu/simd.h"

namespace py = pybind11;

namespace ssept {
namespace {

// Whether the C library keeps what is freed for the next allocation, whatever its size. Without, it
// has the thresholds that glibc itself rises to where large blocks come and go.
void keep_freed_memory([[maybe_unused]] bool keep) {
#ifdef __GLIBC__
  mallopt(M_MMAP_THRESHOLD, keep ? INT_MAX : 32 << 20);
  mallopt(M_TRIM_THRESHOLD, keep ? INT_MAX : 64 << 20);
  if (!keep) malloc_trim(0);
#endif
}

}  // namespace
}  // namespace ssept

namespace ssept::sampler {
void add_bindings(py::module_& m);
}

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels and batch sampler of ssept_ext.";
  m.def("build_info", [] {
    return std::map<std::string, std::string>{{"compiler", SSEPT_COMPILER},
                                              {"torch", SSEPT_TORCH_VERSION},
                                              {"cuda", SSEPT_CUDA_STATUS},
                                              {"simd", ssept::cpu::simd_name()}};
  });
  // Called by ssept_ext.training.environment only.
  m.def("keep_freed_memory", &ssept::keep_freed_memory, py::arg("keep"));
  ssept::sampler::add_bindings(m);
}
