// The native tests. Options are doctest's: --list-test-cases, --test-case=PATTERN, --duration=true.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>

#include "kernels/kernels.h"

int main(int count, char** arguments) {
  std::printf("instruction sets: %s\n", pomona::available_kernels());
  std::fflush(stdout);
  return doctest::Context(count, arguments).run();
}
