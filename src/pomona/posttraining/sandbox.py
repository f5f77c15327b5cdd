"""Running programs that a model wrote: in a process of its own, with walls and limits (report, section 4.2).

    outcomes = run_tests("def double(x): return 2 * x", ["assert double(2) == 4", "assert double(0) == 1"])
    [one.status for one in outcomes]  # ["passed", "failed"]

The report uses micro virtual machines (Firecracker). Ours is what a laptop can do without a daemon or rights:
Linux namespaces and resource limits (sandbox_launcher.py). docs/sandbox.md says against what it does not
protect.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, cast

from pomona.errors import PomonaError

Status = Literal["passed", "failed", "timeout", "crashed"]
Walls = Literal["namespaces", "limits"]

MAX_PROGRAM_BYTES = 1 << 20
MAX_PROGRAMS = 256
_START_SECONDS = 10.0  # of the interpreter and the walls, on a busy machine
_LAUNCHER = Path(__file__).with_name("sandbox_launcher.py")


@dataclass(frozen=True)
class Limits:
    """Of each program. seconds: by the clock. memory_mib: of address space, the interpreter's among it.
    output_bytes: of standard output and error that are kept; what follows is dropped."""

    seconds: float = 5.0
    memory_mib: int = 512
    file_mib: int = 1
    output_bytes: int = 16_384

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("seconds", self.seconds, 0.01, 600.0),
            ("memory_mib", self.memory_mib, 64, 65_536),
            ("file_mib", self.file_mib, 0, 1024),
            ("output_bytes", self.output_bytes, 0, 1 << 20),
        ):
            if not low <= value <= high:
                raise PomonaError(f"sandbox: {name} = {value}: must lie in {low} .. {high}")


@dataclass(frozen=True)
class Outcome:
    """passed: the program ran to its end. failed: it raised (`message`), sys.exit among it. timeout: it was
    stopped. crashed: its process ended in another way (os._exit, a signal, killed for memory)."""

    status: Status
    message: str = ""
    output: str = ""


def run_programs(programs: Sequence[str], limits: Limits | None = None) -> list[Outcome]:
    """Runs Python programs one after the other, each in a process of its own behind the same walls.

    A program sees the standard library, an empty folder and no environment; nothing that one of them does
    reaches the next one, except files in that folder. Raises PomonaError: too many or too large programs, or
    no interpreter could be started; never for what a program does.
    """
    limits = limits or Limits()
    if len(programs) > MAX_PROGRAMS:
        raise PomonaError(f"sandbox: {len(programs)} programs at once; give at most {MAX_PROGRAMS}")
    # Lone surrogates cannot be sent; such a text is no program in any case.
    texts = [program.encode("utf-8", "replace").decode() for program in programs]
    if any(len(text) > MAX_PROGRAM_BYTES for text in texts):
        raise PomonaError(f"sandbox: a program is larger than {MAX_PROGRAM_BYTES:,} characters; shorten it")
    if not texts:
        return []
    order = {
        "programs": texts,
        "seconds": limits.seconds,
        "memory": limits.memory_mib << 20,
        "file": limits.file_mib << 20,
        "output": limits.output_bytes,
    }
    lines = _launch(json.dumps(order).encode(), _START_SECONDS + len(texts) * (limits.seconds + 0.5))
    found = [Outcome(**json.loads(line)) for line in lines[1:]]
    if not lines:
        raise PomonaError("sandbox: no interpreter could be started; see docs/sandbox.md")
    # Only a program that ended the launcher itself leaves others without an answer.
    return found + [Outcome("crashed", "the sandbox ended early")] * (len(texts) - len(found))


def run_tests(solution: str, tests: Sequence[str], limits: Limits | None = None) -> list[Outcome]:
    """Runs every test (statements that raise when something is wrong) behind the solution."""
    return run_programs([f"{solution}\n\n{test}\n" for test in tests], limits)


@cache
def walls() -> tuple[Walls, str]:
    """What stands on this machine, and why not more: ("namespaces", ""), or ("limits", the reason)."""
    order = {"programs": [], "seconds": 1.0, "memory": 1 << 29, "file": 0, "output": 0}
    lines = _launch(json.dumps(order).encode(), _START_SECONDS)
    if not lines:
        raise PomonaError("sandbox: no interpreter could be started; see docs/sandbox.md")
    kind, _, reason = str(json.loads(lines[0])["walls"]).partition(": ")
    return cast(Walls, kind), reason


def _launch(order: bytes, seconds: float) -> list[bytes]:
    """The whole lines that the launcher wrote until it ended, or was ended."""
    python = os.path.realpath(sys.executable)  # of a virtual environment: its base, which has no packages
    with tempfile.TemporaryDirectory(prefix="pomona-sandbox-") as folder, tempfile.TemporaryFile() as out:
        process = subprocess.Popen(
            [python, "-I", "-S", "-B", str(_LAUNCHER), folder],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.DEVNULL,
            env={},
            start_new_session=True,
        )
        try:
            process.communicate(order, timeout=seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        return [line for line in out.read().splitlines(keepends=True) if line.endswith(b"\n")]
