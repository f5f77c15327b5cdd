// Which instruction sets this machine has, and the choice between them.
#include <stdexcept>
#include <string>
#include <string_view>

#include "kernels/kernels.h"

namespace pomona {
namespace {

const Kernels* usable_avx512() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi") &&
      __builtin_cpu_supports("avx512vbmi2"))
    return avx512_kernels();
#endif
  return nullptr;
}

const Kernels* usable_avx2() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    return avx2_kernels();
#endif
  return nullptr;
}

} // namespace

#if !defined(__x86_64__)
const Kernels* avx2_kernels() { return nullptr; }
const Kernels* avx512_kernels() { return nullptr; }
#endif

const char* available_kernels() {
  static const std::string names = [] {
    std::string s;
    if (usable_avx512() != nullptr) s += "avx512 ";
    if (usable_avx2() != nullptr) s += "avx2 ";
    return s + "scalar";
  }();
  return names.c_str();
}

const Kernels& select_kernels(const char* isa) {
  const std::string_view name(isa);
  const bool best = name == "auto";
  if (best || name == "avx512")
    if (const Kernels* k = usable_avx512()) return *k;
  if (best || name == "avx2")
    if (const Kernels* k = usable_avx2()) return *k;
  if (best || name == "scalar") return scalar_kernels();
  throw std::invalid_argument("instruction set '" + std::string(name) +
                              "' is not available here; choose auto or one of: " + available_kernels());
}

} // namespace pomona
