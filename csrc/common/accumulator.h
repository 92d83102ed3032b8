#pragma once
#include <type_traits>

namespace ssept {

// The type sums of T are kept in.
template <class T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

}  // namespace ssept
