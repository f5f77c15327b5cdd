"""What the benchmarks share: taking turns, ratios, goals, facts about the machine, and output.

A benchmark fills a `Report` and hands it to `emit`. `results["rows"]` is its table (flat dictionaries, one
per row) and `results["notes"]` what a reader must know to judge it; both are printed and go into
BENCHMARKS.md. The rest of `results` is for programs. Only the standard library is needed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Row = Mapping[str, str | float]

# The instruction sets that decide which kernels run, as /proc/cpuinfo spells them (x86, then Arm).
ISA_FLAGS = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni"),
    *("avx512vbmi", "avx512_bf16", "amx_int8", "asimd", "asimddp", "i8mm", "bf16", "sve"),
)
BUSY_LOAD = 0.5  # runnable processes per core from which a measurement deserves a warning
SETTLE_SECONDS = 0.05  # lets the threads of the one who was just measured go to sleep


class BenchmarkError(Exception):
    """A benchmark cannot run; `str(error)` is one line that says what to do."""


@dataclass(frozen=True)
class Goal:
    """A figure and the bound that it is meant to reach. A figure that is missing (None) misses it."""

    name: str
    value: float | None
    bound: float
    comparison: Literal[">=", "<="] = ">="

    @property
    def met(self) -> bool:
        if self.value is None:
            return False
        value = float(self.value)  # numpy's comparisons give what JSON does not know
        return value >= self.bound if self.comparison == ">=" else value <= self.bound

    def to_json(self) -> dict[str, Any]:
        value = None if self.value is None else round(self.value, 3)
        goal = f"{self.comparison} {self.bound:g}"
        return {"name": self.name, "value": value, "goal": goal, "met": self.met}


@dataclass(frozen=True)
class Report:
    """What one benchmark found. `to_json()` is the object of the benchmark's last line."""

    benchmark: str
    results: dict[str, Any]
    goals: Sequence[Goal] = ()
    machine: dict[str, Any] = field(default_factory=dict)  # `machine_facts()` of before the first run

    def to_json(self) -> dict[str, Any]:
        return {
            "benchmark": self.benchmark,
            "machine": self.machine,
            "results": self.results,
            "goals": [goal.to_json() for goal in self.goals],
        }


def interleave(
    contestants: Mapping[str, Callable[[], float]],
    rounds: int,
    *,
    settle: float = SETTLE_SECONDS,
    on_round: Callable[[int, int], None] | None = None,
) -> dict[str, list[float]]:
    """Runs A B C A B C ...: `rounds` figures of every contestant, in the order in which they were taken.

    A busy moment on the machine then falls on neighbours alike; compare them with `ratios`. The garbage
    collector rests meanwhile. `on_round(done, rounds)` is called before every round and at the end.
    """
    if rounds < 1:
        raise ValueError(f"rounds = {rounds}: at least one is needed")
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for done in range(rounds):
            if on_round is not None:
                on_round(done, rounds)
            for name, run in contestants.items():
                time.sleep(settle)
                figures[name].append(run())
    finally:
        if collecting:
            gc.enable()
    if on_round is not None:
        on_round(rounds, rounds)
    return figures


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours over theirs, round by round."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def median_and_range(values: Sequence[float]) -> str:
    """For a table: "3.10 (2.95-3.32)"."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def run_command(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], Report],
    argv: Sequence[str] | None = None,
) -> int:
    """The `main` of a benchmark with --threads, --rounds and --json: runs, emits, gives the exit status."""
    from pomona.errors import PomonaError

    options = parser.parse_args(argv)
    if options.threads < 1 or (options.rounds is not None and options.rounds < 1):
        parser.error("--threads and --rounds are at least 1")
    try:
        emit(run(options), options.json)
    except (BenchmarkError, PomonaError) as error:
        print(f"{parser.prog.removeprefix('python -m ')}: error: {error}", file=sys.stderr)
        return 2
    return 0


# --- the machine -----------------------------------------------------------------------------------------


def machine_facts() -> dict[str, Any]:
    """Processor, cores that this process may use, instruction sets, memory, kernel, Python, load. No names
    of people or hosts."""
    info = _first_block(Path("/proc/cpuinfo"))
    present = set((info.get("flags") or info.get("Features") or "").split())
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cores": usable_cores(),
        "isa": [flag for flag in ISA_FLAGS if flag in present],
        "memory_gib": _memory_gib(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_average": _load(),
    }


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy_warning(machine: Mapping[str, Any]) -> str | None:
    """One line, if the machine had other things to do when the benchmark began."""
    load = machine.get("load_average")
    if load is None or load < BUSY_LOAD * machine["cores"]:
        return None
    return f"load average {load:.1f} at the start: the machine is busy, so trust the ratios, not the speeds"


def _first_block(path: Path) -> dict[str, str]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _load() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


# --- output ----------------------------------------------------------------------------------------------


def emit(report: Report, json_file: Path | None = None) -> None:
    """Prints the report for a reader and, as the last line, for a program; writes that line to a file too."""
    line = json.dumps(report.to_json())
    for row in text_table(report.results.get("rows", [])):
        print(row)
    for note in report.results.get("notes", []):
        print(f"- {note}")
    for goal in report.goals:
        print(f"{'met   ' if goal.met else 'MISSED'}  {_goal_line(goal.to_json())}")
    if (warning := busy_warning(report.machine)) is not None:
        print(f"warning: {warning}")
    if json_file is not None:
        json_file.write_text(line + "\n", encoding="utf-8")
    print(line, flush=True)


def text_table(rows: Iterable[Row]) -> list[str]:
    """Lines of a table with aligned columns; the first one flush left."""
    cells = _cells(rows)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]


def markdown_table(rows: Iterable[Row]) -> list[str]:
    """Lines of a Markdown table; numbers flush right."""
    lines = [f"| {' | '.join(line)} |" for line in _cells(rows)]
    if lines:
        columns = lines[0].count(" | ") + 1
        lines.insert(1, "|" + "|".join(["---", *["---:"] * (columns - 1)]) + "|")
    return lines


def markdown_section(title: str, command: str, report: Mapping[str, Any], about: str) -> str:
    """One section of BENCHMARKS.md out of a benchmark's JSON object. about: when and on what it ran."""
    lines = [f"## {title}", "", f"    {command}", "", about, ""]
    lines += markdown_table(report["results"].get("rows", []))
    if notes := report["results"].get("notes"):
        lines += ["", *(f"- {note}" for note in notes)]
    if goals := report["goals"]:
        shown = ({"goal": _goal_line(goal), "met": "yes" if goal["met"] else "**no**"} for goal in goals)
        lines += ["", *markdown_table(shown)]
    return "\n".join(lines) + "\n"


def markdown_machine(machine: Mapping[str, Any]) -> str:
    """One line that says what was measured on."""
    memory = f", {machine['memory_gib']:g} GiB" if machine.get("memory_gib") is not None else ""
    return (
        f"{machine['cpu']} ({machine['architecture']}), {machine['cores']} cores{memory}, "
        f"{machine['kernel']}, Python {machine['python']}; "
        f"{' '.join(machine['isa']) or 'no known instruction set'}"
    )


def format_number(value: float) -> str:
    """Three figures or all digits before the point: 0.42, 9.87, 42.5, 1,234."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def _goal_line(goal: Mapping[str, Any]) -> str:
    value = "not measured" if goal["value"] is None else format_number(goal["value"])
    return f"{goal['name']}: {value} (goal {goal['goal']})"


def _cells(rows: Iterable[Row]) -> list[list[str]]:
    rows = list(rows)
    if not rows:
        return []
    header = list(rows[0])
    for row in rows:
        if list(row) != header:
            raise ValueError(f"the rows of a table need the same columns: {list(row)} against {header}")
    body = [[cell if isinstance(cell, str) else format_number(cell) for cell in row.values()] for row in rows]
    return [header, *body]
