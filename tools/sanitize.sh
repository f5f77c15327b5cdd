#!/usr/bin/env bash
# The native code under the sanitizers, the fast parts first:
#   1. native/tests and a short run of the fuzzers: AddressSanitizer, UndefinedBehaviorSanitizer
#   2. the native tests of threads: ThreadSanitizer
#   3. the Python tests of the native code: AddressSanitizer, UndefinedBehaviorSanitizer
#   tools/sanitize.sh                      all of it, a quarter of an hour on two processors
#   tools/sanitize.sh native               1 and 2
#   tools/sanitize.sh python [arguments]   3, with pytest's arguments if there are any
# Needs the environment that `make test` makes, and doctest (Debian: doctest-dev) for 1 and 2.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$PWD/.venv/bin/python
part=${1:-all}
[ $# -eq 0 ] || shift
build=build/sanitize
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
export ASAN_OPTIONS=abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 TSAN_OPTIONS=halt_on_error=1

# Addresses that are spread too widely stop the sanitizers of older compilers.
fixed=()
setarch -R true 2>/dev/null && fixed=(setarch -R)

build_in() { # folder, sanitizers, options of cmake
  local folder=$1 sanitizers=$2
  shift 2
  cmake -S . -B "$folder" -DPOMONA_SANITIZE="$sanitizers" -DPython_EXECUTABLE="$python" "$@" >/dev/null
  cmake --build "$folder" -j "$(nproc)"
}

native() {
  build_in "$build/address" address,undefined -DPOMONA_NATIVE_TESTS=ON -DPOMONA_FUZZ=driver
  "${fixed[@]}" "$build/address/native/tests/native_tests"
  "${fixed[@]}" "$build/address/native/tests/fuzz_step" --seconds 20
  "${fixed[@]}" "$build/address/native/tests/fuzz_adapter" --seconds 10
  build_in "$build/thread" thread -DPOMONA_PYTHON=OFF -DPOMONA_NATIVE_TESTS=ON
  "${fixed[@]}" "$build/thread/native/tests/native_tests" --test-case="threads:*,*mixed batch*"
}

python_tests() {
  build_in "$build/address" address,undefined
  # The package with the instrumented module, ahead of the installed one.
  local overlay=$PWD/$build/overlay packages
  rm -rf "$overlay"
  mkdir -p "$overlay/pomona"
  ln -s "$PWD"/src/pomona/* "$overlay/pomona/"
  rm -f "$overlay"/pomona/_native*.so
  cp "$build"/address/_native*.so "$overlay/pomona/"
  # Without arguments: what needs no real model, which would take an hour here.
  [ $# -gt 0 ] || set -- -k "not real_compressed_model" tests/native/test_kernels.py tests/native/test_palettize.py \
    tests/native/test_sampler.py tests/runtime/test_engine.py tests/models/test_safetensors_file.py \
    tests/models/test_gguf_file.py
  packages=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
  # Python itself leaks on exit by design; everything else stops the run.
  ASAN_OPTIONS=$ASAN_OPTIONS:detect_leaks=0 \
    LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so) $(g++ -print-file-name=libstdc++.so.6)" \
    "${fixed[@]}" "$python" -S - "$overlay" "$packages" "$@" <<'PY'
import sys
overlay, packages, *arguments = sys.argv[1:]
sys.path[:0] = [overlay, "."]
sys.path.append(packages)
import pytest
from pomona import _native
assert _native.__file__.startswith(overlay), _native.__file__
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *arguments]))
PY
}

case $part in
  all)
    native
    python_tests
    ;;
  native) native ;;
  python) python_tests "$@" ;;
  *) echo "usage: tools/sanitize.sh [native | python [pytest arguments]]" >&2; exit 2 ;;
esac
