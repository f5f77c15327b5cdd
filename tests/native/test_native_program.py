"""The native tests (native/tests), built by CMake and run here: what C++ can check without Python between.

Every instruction set of this machine against scalar, the engine on random models, threads, and a short run of
the fuzzers. `make sanitize` runs the same under the sanitizers, `make test-neon` for ARM, `make fuzz` for
longer.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pomona import _native

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "native-tests"  # stays, so that only what changed is compiled
LONG = 900  # seconds; only a broken program or machine takes so long


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=LONG, cwd=ROOT)


@pytest.fixture(scope="module")
def programs() -> Path:
    """The folder of the programs."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    cmake = shutil.which("cmake", path=path)
    if cmake is None:
        pytest.skip("skipped because cmake is missing; on Debian: apt-get install cmake")
    includes = (Path("/usr/include"), Path("/usr/local/include"))
    if not any((folder / "doctest" / "doctest.h").is_file() for folder in includes):
        pytest.skip("skipped because doctest is missing; on Debian: apt-get install doctest-dev")
    options = ("-DPOMONA_PYTHON=OFF", "-DPOMONA_NATIVE_TESTS=ON", "-DPOMONA_FUZZ=driver")
    for command in (
        (cmake, "-S", ROOT, "-B", BUILD, *options),
        (cmake, "--build", BUILD, "-j", str(os.cpu_count() or 1)),
    ):
        done = _run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
    return BUILD / "native" / "tests"


@pytest.mark.parametrize("part", ["products", "kernels", "engine", "threads", "compensate", "kmeans"])
def test_native_tests_pass(programs: Path, part: str) -> None:
    done = _run(programs / "native_tests", f"--source-file=*{part}_test.cpp")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"instruction sets: {_native.available_isas()}\n" in done.stdout
    assert " 0 failed" in done.stdout and "test cases:  0 " not in done.stdout


@pytest.mark.parametrize("name", ["fuzz_step", "fuzz_adapter"])
def test_some_runs_of_the_fuzzers_find_nothing(programs: Path, name: str) -> None:
    done = _run(programs / name, "--runs", "1500")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("1500 runs in ")


@pytest.mark.parametrize("name", ["fuzz_step", "fuzz_adapter"])
def test_a_fuzzer_that_is_called_wrongly_says_so(programs: Path, name: str) -> None:
    done = _run(programs / name, "--sekonds", "1")
    assert done.returncode == 2
    assert "usage:" in done.stderr
