"""Runs every benchmark and writes BENCHMARKS.md, which nobody edits by hand.

    python -m benchmarks.run_all
    python -m benchmarks.run_all --quick --output quick.md

A benchmark that fails is written down as failed, the others still run, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.common import markdown_machine, markdown_section, usable_cores
from benchmarks.peer import ROOT

HEADER = """# Benchmarks

Written by `make bench`; do not edit. [docs/benchmarks.md](docs/benchmarks.md) says how the figures are taken.
A goal that was missed stays in the list with its value.
"""


@dataclass(frozen=True)
class Benchmark:
    """A module of this package, the arguments that it is run with, and the heading of its section."""

    module: str
    title: str
    arguments: tuple[str, ...] = ()

    def command(self, quick: bool) -> str:
        flags = (*self.arguments, "--quick") if quick else self.arguments
        return shlex.join(["python", "-m", f"benchmarks.{self.module}", *flags])


def benchmarks() -> list[Benchmark]:
    """All of them, in the order of BENCHMARKS.md."""
    both = [2, 1] if usable_cores() > 1 else [1]

    def plural(threads: int) -> str:
        return f"{threads} thread{'s' if threads > 1 else ''}"

    decode = [
        Benchmark(
            "decode",
            f"Decode and prefill against llama.cpp, {plural(threads)}",
            ("--threads", str(threads)),
        )
        for threads in both
    ]
    speculation = Benchmark("speculation", f"Prompt-lookup speculation, {plural(both[0])}")
    guided = Benchmark("guided", f"Guided generation, {plural(both[0])}")
    adapters = Benchmark("adapters", "Adapters in one batch, against llama.cpp's server and PEFT")
    scheduler = Benchmark(
        "scheduler", "The scheduler: what it costs, and a long prompt beside a running answer"
    )
    quality = [
        Benchmark("quality", "Loss against bytes, against llama.cpp's quantisations"),
        Benchmark("quality", "What each step of the compression is worth", ("--ablation",)),
    ]
    palettize = Benchmark("palettize", "Palettisation of a layer, against coremltools")
    adapt = Benchmark(
        "adapt",
        f"Training a task adapter, against TRL and PEFT, {plural(both[0])}",
        ("--threads", str(both[0])),
    )
    return [*decode, adapters, scheduler, speculation, guided, *quality, palettize, adapt]


def run_one(benchmark: Benchmark, quick: bool) -> dict[str, Any] | None:
    """The JSON object of one benchmark, whose output passes through; None if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        words = shlex.split(benchmark.command(quick))[1:]
        code = subprocess.run([sys.executable, *words, "--json", str(file)], cwd=ROOT, check=False).returncode
        if code != 0 or not file.is_file():
            return None
        report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return report


def document(found: Sequence[tuple[Benchmark, dict[str, Any] | None]], quick: bool, when: datetime) -> str:
    """The text of BENCHMARKS.md."""
    parts = [HEADER]
    machine = next((report["machine"] for _, report in found if report is not None), None)
    if machine is not None:
        parts.append(
            f"{when:%Y-%m-%d}, {markdown_machine(machine)}{' (quick, coarse run)' if quick else ''}.\n"
        )
    for benchmark, report in found:
        if report is None:
            parts.append(f"## {benchmark.title}\n\n    {benchmark.command(quick)}\n\nFailed in this run.\n")
        else:
            parts.append(markdown_section(benchmark.title, benchmark.command(quick), report))
    return "\n".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run_all", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="coarser, in under a minute each")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "BENCHMARKS.md", help="the file that is written"
    )
    options = parser.parse_args(argv)
    found: list[tuple[Benchmark, dict[str, Any] | None]] = []
    for benchmark in benchmarks():
        print(f"\n=== {benchmark.title}\n    {benchmark.command(options.quick)}", flush=True)
        found.append((benchmark, run_one(benchmark, options.quick)))
    options.output.write_text(document(found, options.quick, datetime.now(UTC)), encoding="utf-8")
    failed = [benchmark.title for benchmark, report in found if report is None]
    print(f"\nwrote {options.output}" + (f"; FAILED: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
