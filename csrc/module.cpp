// The Python module `_C`: importing it registers the ops; it offers the batch sampler and says how
// it was built.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <optional>
#include <string>

#include "cpu/simd.h"
#include "sampler/prefetcher.h"

namespace py = pybind11;

namespace ssept::sampler {
namespace {

using IntArray = py::array_t<int64_t, py::array::c_style>;

// Keeps the table's arrays alive for the threads that read them.
class PrefetchingSampler {
 public:
  PrefetchingSampler(const IntArray& users, const IntArray& offsets, const IntArray& items,
                     const IntArray& seen_starts, const IntArray& unseen_below,
                     const IntArray& seen_through, const IntArray& unseen_weight,
                     const std::optional<IntArray>& weight_through, int64_t item_num,
                     std::array<uint64_t, 2> key, int64_t batch_size, int64_t max_len,
                     int64_t num_negatives, double window_prob, int64_t num_threads)
      : arrays_{users,        offsets,      items,         seen_starts,
                unseen_below, seen_through, unseen_weight, weight_through.value_or(IntArray())},
        prefetcher_({users.size(), users.data(), offsets.data(), items.data(), seen_starts.data(),
                     unseen_below.data(), seen_through.data(), unseen_weight.data(),
                     weight_through ? weight_through->data() : nullptr, item_num},
                    {key, batch_size, max_len, num_negatives, window_prob}, num_threads),
        num_negatives_(num_negatives) {}

  // (users, offsets, columns, items, positives, negatives, longest); the arrays share the batch's
  // memory.
  py::tuple next() {
    std::shared_ptr<const Batch> batch;
    {
      const py::gil_scoped_release release;
      batch = prefetcher_.next();
    }
    const py::capsule owner(new std::shared_ptr<const Batch>(batch),
                            [](void* x) { delete static_cast<std::shared_ptr<const Batch>*>(x); });
    const auto array = [&](const auto& values) {
      using T = typename std::decay_t<decltype(values)>::value_type;
      return py::array_t<T>(values.size(), values.data(), owner);
    };
    const auto count = static_cast<py::ssize_t>(batch->items.size());
    return py::make_tuple(array(batch->users), array(batch->offsets), array(batch->columns),
                          array(batch->items), array(batch->positives),
                          array(batch->negatives).reshape({count, num_negatives_}), batch->longest);
  }

  void close() {
    const py::gil_scoped_release release;
    prefetcher_.close();
  }

 private:
  std::array<IntArray, 8> arrays_;
  Prefetcher prefetcher_;
  py::ssize_t num_negatives_;
};

}  // namespace
}  // namespace ssept::sampler

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels and batch sampler of ssept_ext.";
  m.def("build_info", [] {
    return std::map<std::string, std::string>{{"compiler", SSEPT_COMPILER},
                                              {"torch", SSEPT_TORCH_VERSION},
                                              {"cuda", SSEPT_CUDA_STATUS},
                                              {"simd", ssept::cpu::simd_name()}};
  });
  using ssept::sampler::IntArray;
  using ssept::sampler::PrefetchingSampler;
  // Called by ssept_ext.sampler only, which checks and documents the arguments.
  py::class_<PrefetchingSampler>(m, "PrefetchingSampler")
      .def(py::init<IntArray, IntArray, IntArray, IntArray, IntArray, IntArray, IntArray,
                    std::optional<IntArray>, int64_t, std::array<uint64_t, 2>, int64_t, int64_t,
                    int64_t, double, int64_t>(),
           py::kw_only(), py::arg("users"), py::arg("offsets"), py::arg("items"),
           py::arg("seen_starts"), py::arg("unseen_below"), py::arg("seen_through"),
           py::arg("unseen_weight"), py::arg("weight_through"), py::arg("item_num"), py::arg("key"),
           py::arg("batch_size"), py::arg("max_len"), py::arg("num_negatives"),
           py::arg("window_prob"), py::arg("num_threads"))
      .def("next", &PrefetchingSampler::next)
      .def("close", &PrefetchingSampler::close);
}
