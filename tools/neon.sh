#!/usr/bin/env bash
# The native tests for ARM: cross-compiled, and run by qemu on a processor that has the dot-product extension and
# on one that has not. Needs no Python.
#   tools/neon.sh [doctest options]
set -euo pipefail
cd "$(dirname "$0")/.."
build=build/neon

missing=()
command -v aarch64-linux-gnu-g++ >/dev/null || missing+=(g++-aarch64-linux-gnu)
qemu=$(command -v qemu-aarch64-static || command -v qemu-aarch64) || missing+=(qemu-user-static)
[ -e /usr/include/doctest/doctest.h ] || missing+=(doctest-dev)
command -v cmake >/dev/null || missing+=(cmake)
if [ "${#missing[@]}" -gt 0 ]; then
  echo "missing on this machine: ${missing[*]}; on Debian: apt-get install ${missing[*]}" >&2
  exit 1
fi

cmake -S . -B "$build" -DCMAKE_TOOLCHAIN_FILE="$PWD/tools/aarch64.cmake" \
  -DPOMONA_PYTHON=OFF -DPOMONA_NATIVE_TESTS=ON -DDOCTEST_INCLUDE=/usr/include >/dev/null
cmake --build "$build" -j "$(nproc)"

# The processor, and the instruction sets that must be found on it: a test that looks at fewer would prove nothing.
for pair in "neoverse-n1:neon_dot neon scalar" "cortex-a53:neon scalar"; do
  processor=${pair%%:*} expected=${pair#*:}
  echo "--- $processor"
  "$qemu" -cpu "$processor" -L /usr/aarch64-linux-gnu "$build/native/tests/native_tests" "$@" |
    tee "$build/$processor.log"
  grep -qx "instruction sets: $expected" "$build/$processor.log" ||
    { echo "expected the instruction sets: $expected" >&2; exit 1; }
done
