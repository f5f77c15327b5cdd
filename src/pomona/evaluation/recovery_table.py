"""What compression costs and recovery gives back, in percent of the 16-bit model: the report's Table 10.

    table = measure(contenders(reference, [models]), data=folder, work=cache, options=TableOptions())
    print(table.rows[1].columns["ifeval"].percent)

The report (section 6.5) gives IFEval at instruction level, AlpacaEval and GSM8K (8-shot chains of thought),
each relative to the model before compression. AlpacaEval needs a judge model; in its place stands an open
answer that a rule scores, QMSum by ROUGE-L. Percentages are ratios on the same items, with bootstrap
intervals that draw the items together for both models.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pomona.adapters.metrics import Interval, Metric, bootstrap, mean
from pomona.errors import PomonaError
from pomona.evaluation.answers import AnswerStore, Asked
from pomona.evaluation.harness import RunOptions, adapter_hash, generate, setting_of
from pomona.evaluation.results import TaskResult
from pomona.evaluation.suites import OWN
from pomona.models.model_directory import read_json_object
from pomona.models.store import resolve
from pomona.runtime.model import ADAPTERS_FOLDER, BASE, RECOVERY, Model

Progress = Callable[[str, int, int], None]
COLUMNS = {  # task -> its metric in the table, and how the column is called
    "ifeval": ("instruction_strict", "IFEval, instructions"),
    "qmsum": ("rouge_l", "QMSum, ROUGE-L"),
    "gsm8k_cot": ("flexible", "GSM8K, 8-shot CoT"),
}
OPEN = 1e9  # a percentage of nothing: where the reference got none of the drawn items right
REPORT = "compression_report.json"
_MEAN = mean("items", lambda prediction, example: None)


@dataclass(frozen=True)
class TableOptions:
    """limits: items of each task, by its name; all where it has none. Otherwise as in RunOptions."""

    tasks: tuple[str, ...] = tuple(COLUMNS)
    limits: Mapping[str, int] = field(default_factory=dict)
    template: bool = False
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        if unknown := [name for name in (*self.tasks, *self.limits) if name not in COLUMNS]:
            raise PomonaError(f"task {unknown[0]}: is none of the table's; choose of {', '.join(COLUMNS)}")
        if not self.tasks or any(limit < 1 for limit in self.limits.values()):
            raise PomonaError("the table needs a task, and at least one item of each")


@dataclass(frozen=True)
class Contender:
    """A model with an adapter, or without one (BASE). kind: "16 bit", "compressed" or "recovered"."""

    kind: str
    directory: Path
    adapter: str


@dataclass(frozen=True)
class Cell:
    """value: the metric itself. percent: of the 16-bit model's; None in its own row. A bound above OPEN / 2
    is none: the reference had no right item in those draws."""

    value: Interval
    percent: Interval | None


@dataclass(frozen=True)
class Row:
    """bits: per projection weight, by the compression report; None where there is none."""

    model: str
    kind: str
    adapter: str | None
    adapter_hash: str | None
    fingerprint: str
    bits: float | None
    seconds: float
    columns: dict[str, Cell]


@dataclass(frozen=True)
class RecoveryTable:
    rows: tuple[Row, ...]
    limits: dict[str, int]
    template: bool
    max_new_tokens: int | None
    date: str

    def to_json(self) -> dict[str, Any]:
        """As it is, with null for what is open."""
        raw = asdict(self)
        for row in raw["rows"]:
            for cell in row["columns"].values():
                bounds = cell["percent"] or {}
                bounds.update({key: None for key, value in bounds.items() if value > OPEN / 2})
        return raw


def contenders(reference: str, models: Sequence[str], adapter: str = RECOVERY) -> list[Contender]:
    """The 16-bit model, then every model alone, and with `adapter` where it has it.

    PomonaError: a model that is not there, or the reference among the models.
    """
    first = resolve(reference)
    found = [Contender("16 bit", first, BASE)]
    for name in models:
        directory = resolve(name)
        if directory.resolve() == first.resolve():
            raise PomonaError(f"{name}: is the reference; name compressed models")
        found.append(Contender("compressed", directory, BASE))
        if (directory / ADAPTERS_FOLDER / adapter).is_dir():
            found.append(Contender("recovered", directory, adapter))
    if len(found) == 1:
        raise PomonaError("no model to compare; name compressed ones: `pomona eval recovery MODEL ...`")
    return found


def measure(
    chosen: Sequence[Contender],
    *,
    data: Path,
    work: Path,
    options: TableOptions | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> RecoveryTable:
    """One model after the other; answers are kept in `work`, so that a run that was stopped goes on."""
    options = options or TableOptions()
    results = []
    for number, one in enumerate(chosen):
        if progress is not None:
            progress("models", number, len(chosen))
        results.append(_results(one, data, work, options, threads, progress))
    [(_, reference), *_] = results
    rows = []
    for about, found in results:
        columns = {
            task: Cell(
                bootstrap(_MEAN, list(found[task].counts().values())),
                None if found is reference else percent(found[task], reference[task]),
            )
            for task in options.tasks
        }
        rows.append(Row(**about, columns=columns))
    return RecoveryTable(
        tuple(rows),
        {task: len(reference[task].items) for task in options.tasks},
        options.template,
        options.max_new_tokens,
        datetime.date.today().isoformat(),
    )


def _results(
    one: Contender,
    data: Path,
    work: Path,
    options: TableOptions,
    threads: int | None,
    progress: Progress | None,
) -> tuple[dict[str, Any], dict[str, TaskResult]]:
    started = time.perf_counter()
    found = {}
    with Model.load(str(one.directory), threads=threads) as model:
        name = model.adapter_for(one.adapter)
        mark = adapter_hash(model, name)
        store = AnswerStore(work / f"{model.engine.fingerprint}-{mark or 'base'}.answers.jsonl")
        try:
            asked = Asked(model, one.adapter, store, progress)
            for task in options.tasks:
                run = RunOptions(
                    one.adapter,
                    options.template,
                    options.limits.get(task),
                    max_new_tokens=options.max_new_tokens,
                )
                metrics = generate(OWN[task], asked, setting_of(model, data, run), run)
                found[task] = next(result for result in metrics if result.metric == COLUMNS[task][0])
        finally:
            store.close()
        about = {
            "model": one.directory.name,
            "kind": one.kind,
            "adapter": name,
            "adapter_hash": mark,
            "fingerprint": model.engine.fingerprint,
            "bits": _bits(one.directory),
            "seconds": time.perf_counter() - started,
        }
    return about, found


def percent(ours: TaskResult, reference: TaskResult) -> Interval:
    """100 * ours / reference, both drawn on the same items."""
    a, b = ours.counts(), reference.counts()
    shared = sorted(a.keys() & b.keys())
    return bootstrap(_PERCENT, [(*a[key], *b[key]) for key in shared])


def _ratio(sums: Any) -> Any:
    ours, theirs = sums[..., 0] / sums[..., 1], sums[..., 2] / sums[..., 3]
    there = theirs > 0
    return np.where(there, 100 * ours / np.where(there, theirs, 1.0), OPEN)


_PERCENT = Metric("percent of 16 bit", lambda prediction, example: None, _ratio)


def _bits(directory: Path) -> float | None:
    path = directory / REPORT
    if not path.is_file():
        return None
    value = read_json_object(path).get("projection_bits_per_weight")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def shown(table: RecoveryTable) -> tuple[list[str], list[list[str]]]:
    """Header and rows as texts, each task with its value and its percentage of the 16-bit model."""
    header = ["model", "bits", "", *(COLUMNS[task][1] for task in table.limits)]
    rows = []
    for row in table.rows:
        bits = "16" if row.kind == "16 bit" else "-" if row.bits is None else f"{row.bits:.2f}"
        rows.append([row.model, bits, row.kind, *(_cell(row.columns[task]) for task in table.limits)])
    return header, rows


def _cell(cell: Cell) -> str:
    value = f"{100 * cell.value.value:.1f}"
    one = cell.percent
    if one is None:
        return f"{value} = 100%" if cell.value.value > 0 else value
    if one.value > OPEN / 2:
        return value
    high = "open" if one.high > OPEN / 2 else f"{one.high:.1f}"
    return f"{value} = {one.value:.1f}% ({one.low:.1f} .. {high})"
