"""`pomona serve` in a process of its own, and what the system says about a server's process.

    with PomonaServer(model, folder, threads=2, settings={"max_running": 64}) as server:
        asyncio.run(closed_loop(server.port, ...))

The model is a directory of links to an existing one, with adapters of our own beside them: a cache is never
written to.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.adapter_peer import START_SECONDS, ChildProcess
from benchmarks.common import BenchmarkError
from benchmarks.peer import ROOT

STOP_SECONDS = 30.0


def linked_model(source: Path, target: Path) -> Path:
    """A model directory at `target`: links to the files of `source`, and an empty adapters folder."""
    (target / "adapters").mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file():
            (target / file.name).symlink_to(file.resolve())
    return target


class PomonaServer(ChildProcess):
    """`pomona serve MODEL` on a free port of 127.0.0.1."""

    def __init__(
        self,
        model: Path,
        folder: Path,
        *,
        threads: int,
        settings: Mapping[str, Any] | None = None,
        log: Path | None = None,
    ) -> None:
        """Returns when the server is ready. folder: for its configuration file. settings: keys of that file.
        log: where its output goes, by default into `folder`.

        Raises BenchmarkError with its last line if it does not start.
        """
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        config = folder / "server.yaml"
        values = {"model": str(model), "port": self.port, "threads": threads, **(settings or {})}
        config.write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML
        command = [sys.executable, "-m", "pomona", "serve", "--config", str(config)]
        self._log = (log or folder / "server.log").open("wb+")
        super().__init__(
            subprocess.Popen(command, cwd=ROOT, stdout=self._log, stderr=subprocess.STDOUT, text=True)
        )
        try:
            self._wait()
        except BenchmarkError:
            self.close()
            raise

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if (code := self._process.poll()) is not None:
                raise BenchmarkError(f"pomona serve ended with {code}: {self.last_line()}")
            try:
                if self.ask("GET", "/ready")[0] == 200:
                    return
            except OSError:
                pass  # it does not listen yet
            time.sleep(0.05)
        raise BenchmarkError(f"pomona serve is not ready after {START_SECONDS:.0f} s: {self.last_line()}")

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, Any]:
        """Status and JSON of one request. OSError if there is no answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            raw = reply.read()
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from error
        finally:
            connection.close()
        try:
            return reply.status, json.loads(raw)
        except ValueError:
            return reply.status, raw.decode(errors="replace")

    def last_line(self) -> str:
        """Of what it printed, for a message."""
        self._log.flush()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").splitlines()
        return lines[-1][:300] if lines else "it printed nothing"

    @property
    def returncode(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._process.poll()

    @property
    def running(self) -> bool:
        return self.returncode is None

    def stop(self) -> int:
        """Asks it to end (SIGTERM) and gives its exit status. BenchmarkError if it does not."""
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise BenchmarkError(f"pomona serve has not ended {STOP_SECONDS:.0f} s after SIGTERM") from error

    def close(self) -> None:
        super().close()
        self._log.close()


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far, all threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / float(os.sysconf("SC_CLK_TCK"))


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files(pid: int) -> int:
    """File descriptors that a process holds."""
    return len(os.listdir(f"/proc/{pid}/fd"))
