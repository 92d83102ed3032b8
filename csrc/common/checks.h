// Argument checks of every op, the same for both devices. std::invalid_argument becomes Python's
// ValueError, std::out_of_range its IndexError.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <initializer_list>
#include <iterator>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

#include "common/dropout.h"

namespace ssept {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class Error = std::invalid_argument, class... Parts>
void check(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  (message << ... << parts);
  throw Error(message.str());
}

// The shape of a tensor, as text that is only made where it is written.
struct Shape {
  explicit Shape(const Tensor& x) : of(x) {}
  const Tensor& of;
};
inline std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  out << '(';
  for (int64_t d = 0; d < shape.of.dim(); ++d) out << (d ? ", " : "") << shape.of.size(d);
  return out << ')';
}

inline void check_dims(const char* name, const Tensor& x, int64_t dims) {
  check(x.dim() == dims, name, " must have ", dims, " dimensions, got shape ", Shape(x));
}

inline void check_size(const char* name, const Tensor& x, int64_t dim, int64_t size) {
  check(x.size(dim) == size, name, " must have size ", size, " in dimension ", dim, ", got shape ",
        Shape(x));
}

inline void check_type(const char* name, const Tensor& x, ScalarType type) {
  check(x.scalar_type() == type, name, " must be ", torch::headeronly::toString(type), ", got ",
        torch::headeronly::toString(x.scalar_type()));
}

// Without a call of torch's dispatcher where there is nothing to do.
inline Tensor as_contiguous(const Tensor& x) {
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}
inline Tensor as_type(const Tensor& x, ScalarType type) {
  return x.scalar_type() == type ? x : torch::stable::to(x, type);
}

// The size of a dimension that may have any.
constexpr int64_t kAnySize = -1;

// The tensor, contiguous, where it has these sizes and this type.
inline Tensor contiguous(const char* name, const Tensor& x, std::initializer_list<int64_t> sizes,
                         ScalarType type) {
  check_dims(name, x, std::ssize(sizes));
  for (int64_t d = 0; d < std::ssize(sizes); ++d)
    if (sizes.begin()[d] != kAnySize) check_size(name, x, d, sizes.begin()[d]);
  check_type(name, x, type);
  return as_contiguous(x);
}

// Every tensor on the device of the first, which names that device's op.
inline void check_devices(std::initializer_list<std::pair<const char*, const Tensor*>> tensors) {
  const auto& [first_name, first] = *tensors.begin();
  for (const auto& [name, x] : tensors) {
    if (x == nullptr) continue;
    check(x->is_cuda() == first->is_cuda() && x->get_device_index() == first->get_device_index(),
          name, " must be on the device of ", first_name);
  }
}

inline Tensor contiguous_cu_seqlens(const char* name, const Tensor& x) {
  check_dims(name, x, 1);
  check(x.size(0) >= 1, name, " must have at least one element, got none");
  return contiguous(name, x, {kAnySize}, ScalarType::Int);
}

// The users of an op, who come with their table, one for each sequence, or not at all.
struct Users {
  std::optional<Tensor> weight, ids;
  int64_t rows = 0, width = 0;  // of the table

  Users() = default;
  Users(const std::optional<Tensor>& user_weight, const std::optional<Tensor>& users,
        int64_t num_sequences, ScalarType type) {
    check(user_weight.has_value() == users.has_value(),
          "user_weight and users must be given together");
    if (!users) return;
    weight = contiguous("user_weight", *user_weight, {kAnySize, kAnySize}, type);
    ids = contiguous("users", *users, {num_sequences}, ScalarType::Long);
    rows = weight->size(0);
    width = weight->size(1);
  }
};

// item_order: a stable argsort of items.flatten(), or nothing.
inline void check_item_order(const std::optional<Tensor>& item_order, const Tensor& items) {
  if (!item_order) return;
  check_devices({{"items", &items}, {"item_order", &*item_order}});
  check_type("item_order", *item_order, ScalarType::Long);
  check_dims("item_order", *item_order, 1);
  check_size("item_order", *item_order, 0, items.numel());
  check(item_order->is_contiguous(), "item_order must be contiguous");
}

template <class T>
const T* data(const Tensor& x) {
  return static_cast<const T*>(x.data_ptr());
}

template <class T>
const T* data(const std::optional<Tensor>& x) {
  return x ? data<T>(*x) : nullptr;
}

template <class T>
T* mutable_data(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

// Valid while `seed` lives. On the CPU it may be read at once; a kernel on another device reads it
// there.
inline DropoutSite check_dropout(double p, const std::optional<Tensor>& seed, int64_t site) {
  check(p >= 0 && p < 1, "dropout_p must be in [0, 1), got ", p);
  check(site >= 0 && site <= UINT32_MAX, "site must be in 0..", UINT32_MAX, ", got ", site);
  if (p > 0) {
    check(seed.has_value() && seed->scalar_type() == ScalarType::Long && seed->numel() == 1,
          "seed must be an int64 tensor of one element where dropout_p > 0");
  }
  return {p > 0 ? data<int64_t>(*seed) : nullptr, static_cast<uint32_t>(p * 4294967296.0),
          static_cast<uint32_t>(site), 1 / (1 - p)};
}

inline const Tensor* pointer(const std::optional<Tensor>& x) { return x ? &*x : nullptr; }

// Host-side check of offsets, for devices where reading them costs nothing.
inline void check_offsets(const char* name, const int32_t* cu_seqlens, int64_t num_sequences,
                          int64_t num_tokens) {
  bool rising = cu_seqlens[0] == 0;
  for (int64_t b = 0; b < num_sequences; ++b) rising &= cu_seqlens[b] <= cu_seqlens[b + 1];
  check(rising && cu_seqlens[num_sequences] <= num_tokens, name, " must rise from 0 to at most ",
        num_tokens, " tokens, got an end of ", cu_seqlens[num_sequences]);
}

inline void check_longest(const char* name, const int32_t* cu_seqlens, int64_t num_sequences,
                          int64_t max_seqlen) {
  int64_t longest = 0;
  for (int64_t b = 0; b < num_sequences; ++b)
    longest = std::max<int64_t>(longest, cu_seqlens[b + 1] - cu_seqlens[b]);
  check(longest <= max_seqlen, "max_seqlen of ", name, " is ", max_seqlen, ", but a sequence has ",
        longest, " tokens");
}

[[noreturn]] inline void throw_bad_id(const char* name, int64_t id, int64_t table_size) {
  std::ostringstream message;
  message << name << " has id " << id << ", outside its table of " << table_size << " rows (0.."
          << table_size - 1 << ')';
  throw std::out_of_range(message.str());
}

// Of ids that name each row once at most.
inline void check_ascending(const char* name, int64_t before, int64_t id) {
  check(before < id, name, " must ascend, got ", id, " after ", before);
}

}  // namespace ssept
