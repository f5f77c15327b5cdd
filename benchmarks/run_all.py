"""Runs every benchmark and writes BENCHMARKS.md, which nobody edits by hand.

    python -m benchmarks.run_all
    python -m benchmarks.run_all --quick --output quick.md
    python -m benchmarks.run_all --only quality -- --no-tasks    # the other sections stay as they are

A benchmark that fails is written down as failed, the others still run, and the exit code is 1. Every section
says when and on what it was measured.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    serving = Benchmark("serving", "The server under load, against llama.cpp's server")
    soak = Benchmark("soak", "The server under abuse: right answers, memory, file handles")
    tasks = Benchmark("tasks", "The zoo's task adapters on their held-out sets, against models without them")
    reward = Benchmark(
        "posttraining_reward", "The reward model on real pairs: soft labels, hard labels, margin"
    )
    evaluation = Benchmark("evaluation", "lm-evaluation-harness on our runtime, against its own model")
    safety = [
        Benchmark("evaluation_guardrail", "The guardrail: what it tells apart, and what it costs a request"),
        Benchmark("evaluation_safety", "Red team and summaries: safety before and after compression"),
    ]
    recovery = Benchmark(
        "evaluation_recovery", "The report's Table 10: 16 bit, compressed, recovered, in percent of 16 bit"
    )
    data = Benchmark(
        "pretraining_data", "The data pipeline: what was planted is found; speed beside datatrove's defaults"
    )
    optimizer = Benchmark(
        "pretraining_optimizer", "The report's optimizer and muParam, against AdamW tuned over the same rates"
    )
    rules = Benchmark(
        "pretraining",
        "The optimizer and Soft-Top-K against independent references",
        ("--only", "rules"),
    )
    table6 = Benchmark(
        "pretraining_table6", "Pruning and distillation: the report's Table 6 in small, at equal cost"
    )
    mdloo = [
        Benchmark("posttraining", "Post-training: MDLOO's step, roll-outs, committees", ("--skip", "rounds")),
        Benchmark(
            "posttraining",
            "The teaching committee: three rounds",
            ("--skip", "equations", "rollouts", "transformers", "llama", "committee"),
        ),
        Benchmark("posttraining_mdloo", "MDLOO, RLOO and rejection sampling on verifiable prompts"),
    ]
    runtime = [*decode, adapters, scheduler, serving, soak, speculation, guided]
    pretraining = [data, rules, optimizer, table6]
    measured = [palettize, adapt, tasks, evaluation, recovery, *safety, *pretraining, reward, *mdloo]
    return [*runtime, *quality, *measured]


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


def section(benchmark: Benchmark, report: dict[str, Any] | None, quick: bool, when: datetime) -> str:
    """Heading, command, date and machine, and what was found."""
    command = benchmark.command(quick)
    if report is None:
        return f"## {benchmark.title}\n\n    {command}\n\n{when:%Y-%m-%d}: failed in this run.\n"
    coarse = " (quick, coarse run)" if quick else ""
    about = f"{when:%Y-%m-%d}, {markdown_machine(report['machine'])}{coarse}."
    return markdown_section(benchmark.title, command, report, about)


def sections(text: str) -> dict[str, str]:
    """Title -> section of an existing BENCHMARKS.md."""
    found = re.split(r"^## (.*)\n", text, flags=re.MULTILINE)
    return {
        title: f"## {title}\n{body.rstrip()}\n" for title, body in zip(found[1::2], found[2::2], strict=True)
    }


def document(parts: Mapping[str, str]) -> str:
    """The text of BENCHMARKS.md: sections by title in the order of `benchmarks`, those of others left out."""
    titles = [benchmark.title for benchmark in benchmarks()]
    return "\n".join([HEADER, *(parts[title] for title in titles if title in parts)])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run_all", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="coarser, in under a minute each")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "BENCHMARKS.md", help="the file that is written"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="only these benchmarks; the file's other sections stay"
    )
    parser.add_argument("arguments", nargs="*", help="after --: further options of every benchmark that runs")
    options = parser.parse_args(argv)
    known = {benchmark.module for benchmark in benchmarks()}
    if unknown := set(options.only or ()) - known:
        parser.error(f"--only {sorted(unknown)[0]}: is none of {', '.join(sorted(known))}")
    if options.arguments and not options.only:
        parser.error("further options need --only: not every benchmark has them")
    parts = sections(options.output.read_text(encoding="utf-8")) if options.only else {}
    failed = []
    for benchmark in benchmarks():
        if options.only and benchmark.module not in options.only:
            continue
        benchmark = replace(benchmark, arguments=(*benchmark.arguments, *options.arguments))
        print(f"\n=== {benchmark.title}\n    {benchmark.command(options.quick)}", flush=True)
        report = run_one(benchmark, options.quick)
        if report is None:
            failed.append(benchmark.title)
        parts[benchmark.title] = section(benchmark, report, options.quick, datetime.now(UTC))
        options.output.write_text(document(parts), encoding="utf-8")
    print(f"\nwrote {options.output}" + (f"; FAILED: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
