"""Pre-training in one run: data, optimizer, and the report's Table 6 in small.

    python -m benchmarks.pretraining --quick
    python -m benchmarks.pretraining --only optimizer table6 --json pretraining.json

Each part is a benchmark of its own (benchmarks.pretraining_data, _optimizer, _table6) with further options;
run_all runs those. Here their tables and goals are printed one after the other, beside the exactness of the
two rules: optimizer and Soft-Top-K.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import (
    BenchmarkError,
    Goal,
    Report,
    machine_facts,
    run_command,
    text_table,
    usable_cores,
)
from benchmarks.pretraining_rules import rules
from pomona.errors import PomonaError

PARTS = ("rules", "optimizer", "table6", "data")


def run(options: argparse.Namespace) -> Report:
    machine = machine_facts()
    parts = tuple(options.only or PARTS)
    if len(parts) == 1:  # its table and notes are those of the report
        report = _report(parts[0], options)
        return Report("pretraining", report.results, report.goals, machine)
    results: dict[str, Any] = {}
    goals: list[Goal] = []
    failed = []
    for part in parts:
        print(f"\n=== {part}", flush=True)
        try:
            report = _report(part, options)
        except (BenchmarkError, PomonaError) as error:  # the others still run
            print(f"failed: {error}", flush=True)
            failed.append(part)
            continue
        for line in text_table(report.results["rows"]):
            print(line)
        for note in report.results["notes"]:
            print(f"- {note}")
        results[part] = report.results
        goals += report.goals
    print()
    if failed:
        raise BenchmarkError(f"failed: {', '.join(failed)}; see above")
    return Report("pretraining", results, goals, machine)


def _report(part: str, options: argparse.Namespace) -> Report:
    if part == "rules":
        return rules()
    module = importlib.import_module(f"benchmarks.pretraining_{part}")
    words = ["--threads", str(options.threads)] + (["--quick"] if options.quick else [])
    words += [] if options.rounds is None else ["--rounds", str(options.rounds)]
    found: Report = module.run(module.parser().parse_args(words))
    return found


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pretraining", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="coarser: shows that all of it runs, in minutes")
    add("--only", nargs="+", choices=PARTS, help="these parts alone")
    add("--threads", type=int, default=min(2, usable_cores()), help="CPU threads (default: %(default)s)")
    add("--rounds", type=int, help="seeds, and rounds of what is timed")
    add("--json", type=Path, metavar="FILE", help="write the last line to this file too")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
