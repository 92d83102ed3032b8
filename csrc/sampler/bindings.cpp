// The batch sampler's part of the Python module `_C`.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <string>

#include "sampler/prefetcher.h"

namespace py = pybind11;

namespace ssept::sampler {
namespace {

using IntArray = py::array_t<int64_t, py::array::c_style>;
using Int32Array = py::array_t<int32_t, py::array::c_style>;

// Keeps the arrays of `UnseenItems` alive.
struct UnseenArrays {
  IntArray seen_starts;
  Int32Array unseen_below;
  std::optional<Int32Array> seen_through;
  IntArray unseen_weight;
  std::optional<Int32Array> weight_through;
  int64_t item_num;

  UnseenItems view() const {
    return {seen_starts.data(),
            unseen_below.data(),
            seen_through ? seen_through->data() : nullptr,
            unseen_weight.data(),
            weight_through ? weight_through->data() : nullptr,
            item_num};
  }
};

// (R, count) items that each row has not seen.
IntArray draw_rows(const UnseenArrays& arrays, PhiloxKey key, int64_t count) {
  const UnseenItems unseen = arrays.view();
  const int64_t num_rows = arrays.unseen_weight.size();
  IntArray items({static_cast<py::ssize_t>(num_rows), static_cast<py::ssize_t>(count)});
  int64_t* item = items.mutable_data();
  auto* words = reinterpret_cast<uint64_t*>(item);  // each gives way to the item made of it
  const py::gil_scoped_release release;
  PhiloxStream(key, 0).fill(words, num_rows * count);
  for (int64_t row = 0; row < num_rows; ++row)
    draw_unseen(unseen, row, words + row * count, count, item + row * count);
  return items;
}

// Replaces ids in the arrays, which the caller has checked to fit each other.
void replace_in(const SseSettings& sse, PhiloxKey key, IntArray users, IntArray items,
                IntArray positives, const Int32Array& offsets, int64_t first_sequence,
                int64_t first_token) {
  const SequenceIds ids{users.size(),         offsets.data(),           users.mutable_data(),
                        items.mutable_data(), positives.mutable_data(), first_sequence,
                        first_token};
  const py::gil_scoped_release release;
  replace_ids(sse, key, 0, ids);
}

// Keeps the table's arrays alive for the threads that read them.
class PrefetchingSampler {
 public:
  PrefetchingSampler(const IntArray& users, const IntArray& offsets, const IntArray& items,
                     const std::optional<IntArray>& times, const UnseenArrays& unseen,
                     PhiloxKey key, int64_t batch_size, int64_t max_len, int64_t num_negatives,
                     double window_prob, const SseSettings& sse, bool numbered,
                     const std::string& negatives_per, uint64_t first_batch, int64_t num_threads)
      : arrays_{users, offsets, items},
        times_(times),
        unseen_(unseen),
        prefetcher_(std::make_unique<Prefetcher>(
            SamplingTable{users.size(), users.data(), offsets.data(), items.data(),
                          times ? times->data() : nullptr, unseen_.view(),
                          *std::max_element(users.data(), users.data() + users.size())},
            DrawSettings{key, batch_size, max_len, num_negatives, window_prob, sse, numbered,
                         negatives_per == "event"      ? NegativesPer::kEvent
                         : negatives_per == "sequence" ? NegativesPer::kSequence
                                                       : NegativesPer::kBatch},
            first_batch, num_threads)),
        num_negatives_(num_negatives),
        numbered_(numbered) {}
  ~PrefetchingSampler() {
    if (prefetcher_->is_foreign()) prefetcher_.release();
  }

  // (users, offsets, columns, items, positives, negatives, longest, numbers, times, target_times);
  // the arrays share the batch's memory. numbers: (item_ids, user_ids, users, items, positives,
  // negatives), or None; so are times of a table without any.
  py::tuple next() {
    std::shared_ptr<const Batch> batch;
    {
      const py::gil_scoped_release release;
      batch = prefetcher_->next();
    }
    const py::capsule owner(new std::shared_ptr<const Batch>(batch),
                            [](void* x) { delete static_cast<std::shared_ptr<const Batch>*>(x); });
    const auto array = [&](const auto& values) {
      using T = typename std::decay_t<decltype(values)>::value_type;
      return py::array_t<T>(values.size(), values.data(), owner);
    };
    const auto sets = [&](const std::vector<int64_t>& values) {
      return array(values).reshape({py::ssize_t{-1}, num_negatives_});
    };
    const auto if_timed = [&](const std::vector<int64_t>& values) {
      return times_ ? py::object(array(values)) : py::none();
    };
    const RowNumbers& rows = batch->numbers;
    py::object numbers = py::none();
    if (numbered_)
      numbers = py::make_tuple(array(rows.item_ids), array(rows.user_ids), array(rows.users),
                               array(rows.items), array(rows.positives), sets(rows.negatives));
    return py::make_tuple(array(batch->users), array(batch->offsets), array(batch->columns),
                          array(batch->items), array(batch->positives), sets(batch->negatives),
                          batch->longest, numbers, if_timed(batch->times),
                          if_timed(batch->target_times));
  }

  void close() {
    const py::gil_scoped_release release;
    prefetcher_->close();
  }

 private:
  std::array<IntArray, 3> arrays_;
  std::optional<IntArray> times_;
  UnseenArrays unseen_;
  std::unique_ptr<Prefetcher> prefetcher_;
  py::ssize_t num_negatives_;
  bool numbered_;
};

}  // namespace

void add_bindings(py::module_& m) {
  // Called by ssept_ext.sampling.negatives only, which builds and documents the arrays.
  py::class_<UnseenArrays>(m, "UnseenItems")
      .def(py::init<IntArray, Int32Array, std::optional<Int32Array>, IntArray,
                    std::optional<Int32Array>, int64_t>(),
           py::kw_only(), py::arg("seen_starts"), py::arg("unseen_below"), py::arg("seen_through"),
           py::arg("unseen_weight"), py::arg("weight_through"), py::arg("item_num"))
      .def("draw", &draw_rows);
  // Called by ssept_ext.data.sse only, which documents the fields and checks the arrays.
  py::class_<SseSettings>(m, "SSE")
      .def(py::init<uint64_t, uint64_t, uint64_t, bool, int64_t, int64_t>(), py::kw_only(),
           py::arg("user_prob"), py::arg("item_prob"), py::arg("target_prob"), py::arg("joint"),
           py::arg("user_num"), py::arg("item_num"))
      .def("replace_in", &replace_in, py::kw_only(), py::arg("key"), py::arg("users").noconvert(),
           py::arg("items").noconvert(), py::arg("positives").noconvert(), py::arg("offsets"),
           py::arg("first_sequence"), py::arg("first_token"));
  // Called by ssept_ext.sampling.draw only, which checks and documents the arguments.
  py::class_<PrefetchingSampler>(m, "PrefetchingSampler")
      .def(py::init<IntArray, IntArray, IntArray, std::optional<IntArray>, UnseenArrays, PhiloxKey,
                    int64_t, int64_t, int64_t, double, SseSettings, bool, std::string, uint64_t,
                    int64_t>(),
           py::kw_only(), py::arg("users"), py::arg("offsets"), py::arg("items"), py::arg("times"),
           py::arg("unseen"), py::arg("key"), py::arg("batch_size"), py::arg("max_len"),
           py::arg("num_negatives"), py::arg("window_prob"), py::arg("sse"), py::arg("numbered"),
           py::arg("negatives_per"), py::arg("first_batch"), py::arg("num_threads"))
      .def("next", &PrefetchingSampler::next)
      .def("close", &PrefetchingSampler::close);
}

}  // namespace ssept::sampler
