#!/usr/bin/env bash
# The native tests and the fuzz tests under AddressSanitizer and UndefinedBehaviorSanitizer.
#   tools/sanitize.sh [pytest arguments]      needs the environment that `make test` makes
set -euo pipefail
cd "$(dirname "$0")/.."
python=$PWD/.venv/bin/python
build=build/sanitize
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

cmake -S . -B "$build" -DPOMONA_SANITIZE=address,undefined -DPython_EXECUTABLE="$python" >/dev/null
cmake --build "$build" -j "$(nproc)"

# The package with the instrumented module, ahead of the installed one.
overlay=$PWD/$build/overlay
rm -rf "$overlay"
mkdir -p "$overlay/pomona"
ln -s "$PWD"/src/pomona/* "$overlay/pomona/"
cp "$build"/_native*.so "$overlay/pomona/"

# Without arguments: everything that needs no real model, which would take an hour here.
if [ $# -eq 0 ]; then
  set -- -k "not real_compressed_model" tests/native tests/runtime/test_engine.py tests/models/test_safetensors_file.py tests/models/test_gguf_file.py
fi
packages=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
# Python itself leaks on exit by design; everything else stops the run.
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so) $(g++ -print-file-name=libstdc++.so.6)" \
  "$python" -S - "$overlay" "$packages" "$@" <<'PY'
import sys
overlay, packages, *arguments = sys.argv[1:]
sys.path[:0] = [overlay, "."]
sys.path.append(packages)
import pytest
from pomona import _native
assert _native.__file__.startswith(overlay), _native.__file__
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *arguments]))
PY
