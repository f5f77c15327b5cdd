#!/usr/bin/env bash
# Fuzzes for FUZZ_SECONDS (600) each: the engine's calls, adapters in memory, adapter directories. The native
# fuzzers run under AddressSanitizer and UndefinedBehaviorSanitizer: by libFuzzer, which follows the branches that
# it has seen, where clang is installed (Debian: clang, libclang-rt-14-dev), else by native/tests/fuzz_driver.cpp.
# Inputs that libFuzzer has found worth keeping stay in build/fuzz/corpus.
#   tools/fuzz.sh [step | adapter | directory]
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${FUZZ_SECONDS:-600}
build=build/fuzz
export ASAN_OPTIONS=abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export FUZZ_SECONDS=$seconds

engine=driver
if command -v clang++ >/dev/null && echo 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }' |
  clang++ -x c++ - -fsanitize=fuzzer,address,undefined -o /dev/null 2>/dev/null; then
  engine=libfuzzer
fi

native() {
  echo "--- fuzz_$1 for $seconds s ($engine)"
  local options=(-DPOMONA_PYTHON=OFF -DPOMONA_FUZZ=$engine -DPOMONA_SANITIZE=address,undefined)
  [ "$engine" = driver ] || options+=(-DCMAKE_CXX_COMPILER=clang++)
  cmake -S . -B "$build/$engine" "${options[@]}" >/dev/null
  cmake --build "$build/$engine" -j "$(nproc)" --target "fuzz_$1"
  if [ "$engine" = driver ]; then
    "$build/$engine/native/tests/fuzz_$1" --seconds "$seconds" --seed "$(date +%s)000000"
  else
    mkdir -p "$build/corpus/$1"
    "$build/$engine/native/tests/fuzz_$1" -max_total_time="$seconds" -max_len=1500 -len_control=0 -timeout=60 \
      -print_final_stats=1 -verbosity=1 -artifact_prefix="$build/" "$build/corpus/$1" 2>&1 |
      grep -vE '^#[0-9]+\s+(NEW|REDUCE)'
  fi
}

directory() {
  echo "--- adapter directories for $seconds s"
  .venv/bin/python -m pytest -s tests/runtime/test_adapter_fuzz.py
}

case ${1:-all} in
  all)
    native step
    native adapter
    directory
    ;;
  step | adapter) native "$1" ;;
  directory) directory ;;
  *) echo "usage: tools/fuzz.sh [step | adapter | directory]" >&2; exit 2 ;;
esac
