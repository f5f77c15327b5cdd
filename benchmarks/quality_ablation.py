"""What each step of our compression is worth: the same budget of bits, one step more in every row.

    python -m benchmarks.quality --ablation                        # builds what is missing, minutes each
    python -m benchmarks.quality --ablation --train                # the trained rows too: hours
    python -m benchmarks.quality --ablation --ablation-folder DIR  # models that are there already

Every row is a model directory in the folder, `BITSbit-STEP`; one that is there is taken as it is. The first
four are made by `pomona compress`, the last ones by `pomona recover`, which trains. The budget is that of all
projections with their tables and scales; steps before allocation by sensitivity meet it by the relative error
of each layer.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.common import BenchmarkError, Goal, Report, Row, machine_facts
from benchmarks.quality_ours import recovery_adapter
from benchmarks.quality_report import DEQUANTISED, Found, loss
from benchmarks.quality_store import Store, digest_of

BUDGETS = (4.0, 3.5)


@dataclass(frozen=True)
class Step:
    """One row. `compress`: options of `pomona compress`; or `recover` those of `pomona recover`, on the model
    of the step `base`. `adapter`: the row is measured with the model's recovery adapter."""

    name: str
    title: str
    compress: tuple[str, ...] = ()
    recover: tuple[str, ...] = ()
    base: str | None = None
    adapter: bool = False

    @property
    def directory(self) -> str:
        """The step whose model this row measures: an adapter lies in the directory of its base."""
        return self.base if self.base is not None and "--out" not in self.recover else self.name


STEPS = (
    Step("kmeans", "plain k-means", ("--method", "kmeans", "--allocation", "error")),
    Step("weighted", "+ weights: second moments", ("--method", "weighted", "--allocation", "error")),
    Step("compensated", "+ error compensation", ("--method", "compensated", "--allocation", "error")),
    Step(
        "allocated",
        "+ allocation by sensitivity",
        ("--method", "compensated", "--allocation", "kl"),
    ),
    Step("adapter", "+ recovery adapter", recover=("--rank", "16"), base="allocated", adapter=True),
    Step(
        "tables",
        "+ trained tables, no adapter",
        recover=("--rank", "16", "--tables", "--out"),
        base="allocated",
    ),
    Step("both", "+ trained tables and adapter", recover=("--rank", "16"), base="tables", adapter=True),
)


@dataclass(frozen=True)
class Entry:
    """A row that can be measured."""

    budget: float
    step: Step
    directory: Path
    adapter: Path | None

    @property
    def name(self) -> str:
        return f"{self.budget:g} bits, {self.step.name}"


def place(folder: Path, budget: float, step: str) -> Path:
    return folder / f"{budget:g}bit-{step}"


def available(folder: Path, budgets: Sequence[float] = BUDGETS) -> tuple[list[Entry], list[str]]:
    """The rows whose models are there, in order; and what is missing, as "4 bits: + trained tables"."""
    entries, missing = [], []
    for budget in budgets:
        for step in STEPS:
            directory = place(folder, budget, step.directory)
            adapter = recovery_adapter(directory) if step.adapter else None
            if (directory / "config.json").is_file() and (adapter is not None or not step.adapter):
                entries.append(Entry(budget, step, directory, adapter))
            else:
                missing.append(f"{budget:g} bits: {step.title}")
    return entries, missing


def build(reference: Path, folder: Path, budgets: Sequence[float], threads: int, *, train: bool) -> None:
    """Makes what is missing, in order. BenchmarkError if a command of ours fails."""
    folder.mkdir(parents=True, exist_ok=True)
    for budget in budgets:
        for step in STEPS:
            if step.recover and not train:
                continue
            directory = place(folder, budget, step.directory)
            if (directory / "config.json").is_file() and not (
                step.adapter and recovery_adapter(directory) is None
            ):
                continue
            if step.base == "tables":  # made by the step before, adapter and tables in one training
                continue
            command = command_of(step, reference, folder, budget, threads)
            print(f"{step.title}: {' '.join(command[2:])}", file=sys.stderr, flush=True)
            if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode != 0:
                raise BenchmarkError(f"{step.title}: pomona failed; its last words stand above")


def budget_option(budget: float) -> str:
    """As `--bits` takes it: a whole number there means the bits of the indices alone, tables on top."""
    return f"{budget - 0.001:g}" if budget == int(budget) else f"{budget:g}"


def command_of(step: Step, reference: Path, folder: Path, budget: float, threads: int) -> list[str]:
    """The command that makes the model (or adapter) of a step."""
    pomona = [sys.executable, "-m", "pomona"]
    common = ["--threads", str(threads), "--json"]
    target = str(place(folder, budget, step.name))
    if step.compress:
        return [
            *(*pomona, "compress", str(reference), "--out", target, "--bits", budget_option(budget)),
            *(*step.compress, *common),
        ]
    assert step.base is not None
    base = str(place(folder, budget, step.base))
    options = [*step.recover, target] if step.recover[-1] == "--out" else list(step.recover)
    return [*pomona, "recover", base, "--teacher", str(reference), *options, *common]


def run(options: argparse.Namespace) -> Report:
    """Builds what may be built, measures what is there."""
    from benchmarks.quality import Contender, found_of, measure, our_contender, read_protocol, weight_files
    from pomona.models.store import resolve

    machine = machine_facts()
    reference = resolve(options.reference)
    folder: Path = options.ablation_folder or options.folder / "ablation"
    if not options.no_build:
        build(reference, folder, BUDGETS, options.threads, train=options.train)
    entries, missing = available(folder)
    if not entries:
        raise BenchmarkError(f"{folder}: holds no model of the ablation; leave --no-build out")
    protocol = read_protocol(reference, options)
    mark = {"reference": digest_of(weight_files(reference)), "context": protocol.context}
    sixteen = our_contender(reference, None, options.threads, mark, name=f"16 bit ({reference.name})")
    contenders: dict[str, Contender] = {
        entry.name: our_contender(entry.directory, entry.adapter, options.threads, mark, label=entry.name)
        for entry in entries
    }
    store = Store(options.folder, fresh=options.fresh)
    records = measure([sixteen, *contenders.values()], protocol, store, options.threads)
    base = found_of(sixteen, records[sixteen.name], protocol)
    found = {name: found_of(one, records[name], protocol) for name, one in contenders.items()}
    return Report(
        benchmark="quality",
        machine=machine,
        results={
            "protocol": str(protocol),
            "rows": rows(entries, found, base),
            "notes": notes(str(protocol), missing, base),
            "contenders": [one.to_json(base) for one in found.values()],
            "missing": missing,
        },
        goals=goals(entries, found),
    )


def rows(entries: Sequence[Entry], found: dict[str, Found], reference: Found) -> list[Row]:
    shown: list[Row] = []
    for entry in entries:
        one = found[entry.name]
        shown.append(
            {
                "16 bit = de-quantised Q4_1": f"{entry.budget:g} bits: {entry.step.title}",
                "MB": one.bytes / 1e6,
                "projections": f"{one.projection_bits:.2f}",
                "bits/weight": f"{8 * one.bytes / one.weights:.2f}",
                "perplexity": f"{one.sums.perplexity:.2f}",
                "loss %": f"{loss(one, reference):+.1f}",
                "KL": f"{one.kl:.3f}",
                "same top %": 100 * one.sums.same_top,
            }
        )
    return shown


def goals(entries: Sequence[Entry], found: dict[str, Found]) -> list[Goal]:
    """Each step is worth something: its KL is below that of the row before, of the same budget."""
    result = []
    for before, after in pairwise(entries):
        if before.budget == after.budget and after.step.name != "tables":
            ratio = found[after.name].kl / found[before.name].kl
            name = f"{after.budget:g} bits: KL after '{after.step.title}' over the row before"
            result.append(Goal(name, ratio, 1.0, "<="))
    return result


def notes(protocol: str, missing: Sequence[str], reference: Any) -> list[str]:
    lines = [DEQUANTISED] if "smollm2-135m" in reference.name else []
    lines.append(protocol)
    lines.append("MB and bits/weight hold the adapter in the rows that have one")
    if missing:
        lines.append(f"not there (--train makes the trained ones, in hours): {'; '.join(missing)}")
    return lines
