// Which instruction sets this machine has, and the choice between them.
#include <stdexcept>
#include <string>
#include <string_view>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include "kernels/kernels.h"

namespace pomona {
namespace {

#if defined(__x86_64__)

const Kernels* usable_avx512() {
  const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                   __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi") &&
                   __builtin_cpu_supports("avx512vbmi2");
  return has ? avx512_kernels() : nullptr;
}

const Kernels* usable_avx512_bf16() {
  return __builtin_cpu_supports("avx512bf16") && usable_avx512() != nullptr ? avx512_bf16_kernels() : nullptr;
}

const Kernels* usable_avx2() {
  unsigned a = 0, b = 0, c = 0, d = 0; // not every compiler's __builtin_cpu_supports knows f16c
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
  const bool has = f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return has ? avx2_kernels() : nullptr;
}

#elif defined(__aarch64__)

const Kernels* usable_neon_dot() {
#if defined(__linux__)
  constexpr unsigned long kDotProduct = 1ul << 20; // HWCAP_ASIMDDP of asm/hwcap.h
  return (getauxval(AT_HWCAP) & kDotProduct) != 0 ? neon_dot_kernels() : nullptr;
#elif defined(__APPLE__)
  return neon_dot_kernels(); // every Apple processor of 64 bits that runs macOS has it
#else
  return nullptr;
#endif
}

#endif

// Best first. A name whose code was not built, or that this machine cannot run, has no table.
struct Candidate {
  std::string_view name;
  const Kernels* (*table)();
  bool rounds = false; // computes other bits than the rest: only by its name
};

constexpr Candidate kCandidates[] = {
#if defined(__x86_64__)
    {"avx512", usable_avx512},
    {"avx2", usable_avx2},
    {"avx512_bf16", usable_avx512_bf16, true},
#elif defined(__aarch64__)
    {"neon_dot", usable_neon_dot},
    {"neon", neon_kernels},
#endif
    {"scalar", [] { return &scalar_kernels(); }},
};

std::string names(bool rounds) {
  std::string s;
  for (const Candidate& c : kCandidates) {
    if (c.rounds != rounds || c.table() == nullptr) continue;
    if (!s.empty()) s += ' ';
    s += c.name;
  }
  return s;
}

} // namespace

const char* available_kernels() {
  static const std::string found = names(false);
  return found.c_str();
}

const char* rounding_kernels() {
  static const std::string found = names(true);
  return found.c_str();
}

const Kernels& select_kernels(const char* isa) {
  const std::string_view name(isa);
  for (const Candidate& c : kCandidates)
    if (name == "auto" ? !c.rounds : name == c.name)
      if (const Kernels* k = c.table()) return *k;
  throw std::invalid_argument("instruction set '" + std::string(name) +
                              "' is not available here; choose auto or one of: " + available_kernels());
}

} // namespace pomona
