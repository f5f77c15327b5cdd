"""A Python function in a process of its own, with a time limit: one that hangs or dies costs one value.

    with Isolated("mypackage.rewards.polite", seconds=5) as function:
        outcome = function.call([messages, row])    # Outcome(value=0.7) or Outcome(problem="timeout")

This guards against accidents, not against malice: the function is the user's own. Programs that a model wrote
go through sandbox.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

from pomona.errors import PomonaError

Problem = Literal["timeout", "crashed", "error"]
START_SECONDS = 60.0  # to import the function's module
MAX_LINE = 1 << 16


@dataclass(frozen=True)
class Outcome:
    """value: what the function gave, perhaps NaN; or what went wrong, with a message."""

    value: float | None = None
    problem: Problem | None = None
    message: str = ""


class Isolated:
    """A context manager. The process begins with the first call and anew after it was lost."""

    def __init__(self, dotted: str, *, seconds: float = 10.0) -> None:
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", dotted):
            raise PomonaError(f"{dotted}: is no dotted name of a function; write package.module.function")
        self.dotted, self.seconds = dotted, seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""

    def call(self, arguments: Sequence[Any]) -> Outcome:
        """PomonaError: the function cannot be imported."""
        if self._process is None:
            self._start()
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(list(arguments)).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            self.close()
            return Outcome(problem="crashed", message="the process had ended")
        return self._answer(self.seconds)

    def _start(self) -> None:
        self._buffer = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pomona.posttraining.isolated_worker", self.dotted],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        ready = self._answer(START_SECONDS)
        if ready.problem is not None:
            self.close()
            raise PomonaError(f"{self.dotted}: cannot be used ({ready.message or ready.problem}); mend it")

    def _answer(self, seconds: float) -> Outcome:
        """The next line. A process that gives none in time is ended."""
        assert self._process is not None and self._process.stdout is not None
        until = time.monotonic() + seconds
        handle = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            left = until - time.monotonic()
            if left <= 0 or not select.select([handle], [], [], left)[0]:
                self.close()
                return Outcome(problem="timeout", message=f"no answer within {seconds:g} seconds")
            piece = os.read(handle, MAX_LINE)
            if not piece or len(self._buffer) > MAX_LINE:
                self.close()
                return Outcome(problem="crashed", message="the process ended")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        found = json.loads(line)
        if "error" in found:
            return Outcome(problem="error", message=str(found["error"]))
        return Outcome(value=float(found["value"]))

    def close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
