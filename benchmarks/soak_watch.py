"""Memory and file handles of a process over time, out of /proc."""

from __future__ import annotations

import statistics
import threading
import time
from types import TracebackType
from typing import Self

from benchmarks.common import BenchmarkError
from benchmarks.servers import open_files, resident_bytes


class Watch:
    """A context manager that looks at the process every second or, in a short run, a hundred times in all."""

    def __init__(self, pid: int, seconds: float) -> None:
        self.pid, self.seconds = pid, seconds
        self.files_before = self.most_files = open_files(pid)
        self.resident: list[tuple[float, int]] = []  # seconds since the start, bytes
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        started = time.monotonic()
        while not self._done.wait(min(1.0, self.seconds / 100)):
            try:
                self.resident.append((time.monotonic() - started, resident_bytes(self.pid)))
                self.most_files = max(self.most_files, open_files(self.pid))
            except (OSError, IndexError):
                return  # it has ended

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def thirds(self) -> list[tuple[str, float]]:
        """The median resident set of each third of the time, in bytes."""
        found = []
        for part, name in enumerate(("first third", "second third", "last third")):
            low, high = part * self.seconds / 3, (part + 1) * self.seconds / 3
            if sizes := [size for at, size in self.resident if low <= at < high]:
                found.append((name, float(statistics.median(sizes))))
        return found

    def growth(self) -> float | None:
        """Last third over second; None if the process did not live that long."""
        sizes = dict(self.thirds())
        if len(sizes) < 3:
            return None
        return sizes["last third"] / sizes["second third"]

    def resident_by_minute(self) -> list[int]:
        """The median of every minute, in bytes: a curve for the report."""
        minutes: dict[int, list[int]] = {}
        for at, size in self.resident:
            minutes.setdefault(int(at // 60), []).append(size)
        return [int(statistics.median(sizes)) for _, sizes in sorted(minutes.items())]

    def left_open(self, patience: float) -> int:
        """How many more file handles there are than before the first client; waits for them to be closed."""
        end = time.monotonic() + patience
        while True:
            try:
                left = open_files(self.pid) - self.files_before
            except OSError as error:
                raise BenchmarkError("the server ended before its file handles could be counted") from error
            if left <= 0 or time.monotonic() > end:
                return max(0, left)
            time.sleep(0.2)
