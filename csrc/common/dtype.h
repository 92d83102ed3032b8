// From a tensor's type to the C++ types kernels are compiled for.
#pragma once
#include "common/accumulator.h"
#include "common/checks.h"

namespace ssept {

inline ScalarType accumulator_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Calls f.template operator()<T>(); Half and BFloat16 are the device's own types of those names.
template <class Half, class BFloat16, class F>
void dispatch_floating(const char* name, ScalarType type, F&& f) {
  switch (type) {
    case ScalarType::Float:
      return f.template operator()<float>();
    case ScalarType::Double:
      return f.template operator()<double>();
    case ScalarType::Half:
      return f.template operator()<Half>();
    case ScalarType::BFloat16:
      return f.template operator()<BFloat16>();
    default:
      check(false, name, " must be float16, bfloat16, float32 or float64, got ",
            torch::headeronly::toString(type));
  }
}

}  // namespace ssept
