// The Python module `_C`. Importing it registers the ops; it says itself only how it was built.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of ssept_ext.";
  m.def("build_info", [] {
    return std::map<std::string, std::string>{
        {"compiler", SSEPT_COMPILER}, {"torch", SSEPT_TORCH_VERSION}, {"cuda", SSEPT_CUDA_STATUS}};
  });
}
