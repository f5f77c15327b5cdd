"""What a run of a suite gave: every item's score, so that a later run can be held against it.

    result = EvalResult.read(Path("after.json"))
    compare(result, EvalResult.read(Path("before.json")))

Two results are compared on the items that both have, by a paired bootstrap: the same items are drawn again on
both sides.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pomona.adapters.metrics import Interval, bootstrap, mean, paired_bootstrap
from pomona.errors import PomonaError
from pomona.models.model_directory import parse_json_object

MAX_RESULT_BYTES = 256 << 20
MAX_ANSWER = 4000  # characters of an answer that are kept in a result
_ITEM = mean("items", lambda prediction, example: None)  # a mean over items, for intervals


@dataclass(frozen=True)
class TaskResult:
    """One metric of one task.

    items: the score of each item, by its number or name. weights: how much each item counts, where they
    differ (IFEval's instructions per prompt). main: the metric that the average takes. answers: what the
    model wrote, cut to MAX_ANSWER characters, with the main metric of a task that generates.
    """

    task: str
    metric: str
    shots: int
    version: str
    items: dict[str, float]
    weights: dict[str, float] = field(default_factory=dict)
    main: bool = True
    answers: dict[str, str] = field(default_factory=dict)

    @property
    def interval(self) -> Interval:
        """The mean over the items, with its bootstrap interval of 95%."""
        return bootstrap(_ITEM, list(self.counts().values()))

    def counts(self) -> dict[str, tuple[float, float]]:
        """Item -> (points, weight)."""
        weighed = {key: (value, self.weights.get(key, 1.0)) for key, value in self.items.items()}
        return {key: (value * weight, weight) for key, (value, weight) in weighed.items()}


@dataclass(frozen=True)
class EvalResult:
    """What a run of a suite gave. template: the model's chat template was used. left_out: tasks whose data
    was not there. source: "local" files or the "hub"."""

    suite: str
    model: str
    fingerprint: str
    adapter: str | None
    adapter_hash: str | None  # of its weights
    template: bool
    limit: int | None
    lm_eval: str
    date: str
    seconds: float
    tasks: tuple[TaskResult, ...]
    samples: int = 1
    temperature: float = 0.0
    max_new_tokens: int | None = None
    source: str = "local"
    left_out: tuple[str, ...] = ()

    @property
    def average(self) -> float:
        """The plain mean over the tasks' main metrics; MMLU's subjects count together as one, by items."""
        values = [value for _, value in self.table()]
        return sum(values) / max(len(values), 1)

    def table(self) -> list[tuple[str, float]]:
        """Task -> value of its main metric, with MMLU's subjects as one row."""
        main = {row_name(task) for task in self.tasks if task.main}
        sums = [
            (name, [sum(part) for part in zip(*counts.values(), strict=True)])
            for name, counts in self.counts().items()
            if name in main
        ]
        return [(name, points / weight) for name, (points, weight) in sums]

    def rows(self) -> list[tuple[str, Interval]]:
        """Tasks with their intervals, MMLU's subjects as one row, further metrics in rows of their own."""
        return [(name, bootstrap(_ITEM, list(counts.values()))) for name, counts in self.counts().items()]

    def counts(self) -> dict[str, dict[tuple[str, str], tuple[float, float]]]:
        """Row -> item -> (points, weight). An item carries its task, metric and shots: others are others."""
        found: dict[str, dict[tuple[str, str], tuple[float, float]]] = {}
        for task in self.tasks:
            row = found.setdefault(row_name(task), {})
            mark = f"{task.task}/{task.metric}/{task.shots}"
            row.update({(mark, item): counts for item, counts in task.counts().items()})
        return found

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "average": self.average, "table": {n: vars(i) for n, i in self.rows()}}

    @classmethod
    def read(cls, path: Path) -> EvalResult:
        """What `to_json` wrote. PomonaError for anything else."""
        try:
            if path.stat().st_size > MAX_RESULT_BYTES:
                raise PomonaError(f"{path}: is too large for a result; give a file that `pomona eval` wrote")
            raw = parse_json_object(path.read_bytes(), str(path))
        except OSError as error:
            raise PomonaError(f"{path}: cannot be read ({error})") from error
        try:
            result = TypeAdapter(cls).validate_python(raw)
        except ValidationError as error:
            [problem, *_] = error.errors(include_url=False, include_input=False)
            where = ".".join(map(str, problem["loc"]))
            raise PomonaError(
                f"{path}: is no result of `pomona eval` ({where}: {problem['msg']}); run the suite again"
            ) from error
        if not result.tasks or not all(task.items for task in result.tasks):
            raise PomonaError(f"{path}: has no items; run the suite again")
        numbers = [number for task in result.tasks for pair in task.counts().values() for number in pair]
        if not all(math.isfinite(number) for number in numbers) or min(numbers[1::2]) <= 0:
            raise PomonaError(f"{path}: a score is no number, or a weight not above 0; run the suite again")
        return result


def row_name(task: TaskResult) -> str:
    name = "mmlu" if task.task.startswith("mmlu_") else task.task
    return name if task.main else f"{name} {task.metric}"


def compare(ours: EvalResult, theirs: EvalResult) -> dict[str, Interval]:
    """Row -> ours - theirs on the items that both have, with paired bootstrap intervals of 95%."""
    a, b = ours.counts(), theirs.counts()
    result: dict[str, Interval] = {}
    for row in a:
        shared = sorted(a[row].keys() & b.get(row, {}).keys())
        if shared:
            result[row] = paired_bootstrap(
                _ITEM, [a[row][key] for key in shared], [b[row][key] for key in shared]
            )
    if not result:
        raise PomonaError("the two results have no item in common; run the same suite on both")
    return result


def write_result(result: EvalResult, path: Path) -> None:
    """The file appears whole or not at all."""
    write_text(path, json.dumps(result.to_json(), indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Beside, then renamed. PomonaError if it cannot be written."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise PomonaError(f"{path}: cannot be written ({error.strerror})") from error


def shown(rows: Sequence[tuple[str, Interval]], sign: str = "") -> list[str]:
    """Lines of a table: value, interval, items."""
    width = max((len(name) for name, _ in rows), default=0)
    return [
        f"{name.ljust(width)}  {100 * one.value:{sign}6.2f}%  "
        f"({100 * one.low:{sign}.2f} .. {100 * one.high:{sign}.2f})  {one.rows:,} items"
        for name, one in rows
    ]
