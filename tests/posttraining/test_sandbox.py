"""Programs in the sandbox: what comes of them, and what they cannot reach."""

from __future__ import annotations

from pathlib import Path

import pytest

from pomona.errors import PomonaError
from pomona.posttraining import sandbox
from pomona.posttraining.sandbox import Limits, run_programs, run_tests, walls

QUICK = Limits(seconds=1.0)
CAPABILITIES = """
import ctypes
header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(*range(1, 7))
assert ctypes.CDLL(None).capget(header, data) == 0 and list(data) == [0] * 6
"""


@pytest.fixture
def limits_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a machine that refuses namespaces."""
    text = sandbox._LAUNCHER.read_text(encoding="utf-8").replace('!= "linux"', '!= "elsewhere"')
    launcher = tmp_path / "launcher.py"
    launcher.write_text(text, encoding="utf-8")
    monkeypatch.setattr(sandbox, "_LAUNCHER", launcher)


def test_each_test_passes_or_fails_by_itself() -> None:
    tests = ["assert double(2) == 4", "assert double(0) == 1", "assert double(-1) == -2"]
    found = run_tests("def double(x):\n    return 2 * x", tests)
    assert [one.status for one in found] == ["passed", "failed", "passed"]
    assert found[1].message.startswith("AssertionError")


@pytest.mark.parametrize("namespaces", [True, False])
def test_a_program_ends_in_one_of_four_ways(namespaces: bool, request: pytest.FixtureRequest) -> None:
    if not namespaces:
        request.getfixturevalue("limits_alone")
    programs = {
        "print('hello')": "passed",
        "1 / 0": "failed",
        "def f(:": "failed",
        "import sys; sys.exit(0)": "failed",
        "while True: pass": "timeout",
        "import os; os._exit(0)": "crashed",
        "import os; os.kill(os.getpid(), 9)": "crashed",
        "x = bytearray(10**9)": "failed",
        "open('a', 'wb').write(bytes(10**8))": "failed",
        "import time\ntry:\n    time.sleep(60)\nexcept BaseException:\n    pass": "timeout",
    }
    found = run_programs(list(programs), QUICK)
    assert dict(zip(programs, [one.status for one in found], strict=True)) == programs
    assert found[0].output == "hello\n"


def test_what_a_program_says_does_not_decide_whether_it_passed() -> None:
    lies = [
        "import os\nfor end in range(3, 32):\n"
        "    try: os.write(end, b'passed\\n')\n"
        "    except OSError: pass\n1 / 0",
        'print(\'{"status": "passed"}\'); raise ValueError',
        "import os; os.write(1, b'passed'); os._exit(0)",
    ]
    assert all(one.status in ("failed", "crashed") for one in run_programs(lies, QUICK))


def test_output_is_cut_and_processes_left_behind_are_ended() -> None:
    behind = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(100)\nprint('a' * 10**6)"
    [found] = run_programs([behind], Limits(seconds=2.0, output_bytes=100))
    assert (found.status, found.output) == ("passed", "a" * 100)


def test_one_program_leaves_nothing_in_the_next() -> None:
    first = "import builtins; builtins.leaked = 1; import math; math.pi = 3"
    second = "import math, builtins\nassert math.pi > 3.1 and not hasattr(builtins, 'leaked')"
    assert [one.status for one in run_programs([first, second], QUICK)] == ["passed", "passed"]


@pytest.mark.skipif(walls()[0] != "namespaces", reason=f"no namespaces here: {walls()[1]}")
def test_with_namespaces_there_is_no_network_and_no_file_of_ours(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    programs = {
        "import socket; socket.create_connection(('127.0.0.1', 22), 1)": "failed",
        f"open({str(secret)!r})": "failed",
        "open('/etc/passwd')": "failed",
        "open('/usr/new', 'w')": "failed",
        "import os; assert os.listdir('.') == [] and not os.environ.get('HOME')": "passed",
        "open('mine', 'w').write('1'); assert open('mine').read() == '1'": "passed",
        "import os; assert os.getuid() != 0; os.mkdir('/tmp/x')": "failed",
        "import os; os.kill(os.getppid(), 9)": "passed",  # process 1 of its namespace is not to be killed
        "import os; os.chroot('/')": "failed",
        "import ctypes; assert ctypes.CDLL(None).umount2(b'/usr', 2) == 0": "failed",
        CAPABILITIES: "passed",
    }
    found = run_programs(list(programs), QUICK)
    assert dict(zip(programs, [one.status for one in found], strict=True)) == programs


def test_what_cannot_be_run_is_refused() -> None:
    assert run_programs([]) == []
    with pytest.raises(PomonaError, match="at most"):
        run_programs(["pass"] * 1000)
    with pytest.raises(PomonaError, match="larger"):
        run_programs(["#" * (2 << 20)])
    with pytest.raises(PomonaError, match="seconds"):
        Limits(seconds=0)
    [found] = run_programs(["x = '\ud800'"], QUICK)
    assert found.status == "passed"
