"""A suite of lm-eval's tasks on one model, and two results held against each other.

    result = run_suite(model, suite_of("core"), data=folder, work=cache)
    compare(result, EvalResult.read(Path("before.json")))

A result keeps every item's score, so that two models are compared on the same items by a paired bootstrap.
Log-likelihoods and answers are kept in `work` as they are made: an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pomona.adapters.metrics import Interval, bootstrap, mean, paired_bootstrap
from pomona.errors import PomonaError
from pomona.evaluation.lm_eval_model import lm_eval_model
from pomona.evaluation.local_sets import local_tasks
from pomona.evaluation.suites import Suite, SuiteTask
from pomona.models.model_directory import parse_json_object
from pomona.runtime.adapter_file import WEIGHTS_FILE
from pomona.runtime.model import Model

Progress = Callable[[str, int, int], None]
MAX_RESULT_BYTES = 256 << 20
_ITEM = mean("items", lambda prediction, example: None)  # a mean over items, for intervals


@dataclass(frozen=True)
class TaskResult:
    """metric: by lm-eval's name. items: the score of each item, by its number in the task."""

    task: str
    metric: str
    shots: int
    version: str
    items: dict[str, float]

    @property
    def interval(self) -> Interval:
        """The mean over the items, with its bootstrap interval of 95%."""
        return bootstrap(_ITEM, [(value, 1.0) for value in self.items.values()])


@dataclass(frozen=True)
class EvalResult:
    """What a run of a suite gave. template: the model's chat template was used."""

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

    @property
    def average(self) -> float:
        """The plain mean over tasks; MMLU's subjects count together as one, by items."""
        return sum(value for _, value in self.table()) / max(len(self.table()), 1)

    def table(self) -> list[tuple[str, float]]:
        """Task -> value, with MMLU's subjects as one row."""
        return [(name, one.value) for name, one in self.rows()]

    def rows(self) -> list[tuple[str, Interval]]:
        """Tasks with their intervals, MMLU's subjects as one row."""
        return [(name, bootstrap(_ITEM, counts)) for name, counts in self._counts().items()]

    def _counts(self) -> dict[str, list[tuple[float, float]]]:
        found: dict[str, list[tuple[float, float]]] = {}
        for task in self.tasks:
            found.setdefault(row_name(task.task), []).extend((v, 1.0) for v in task.items.values())
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
            tasks = tuple(
                TaskResult(
                    str(one["task"]),
                    str(one["metric"]),
                    int(one["shots"]),
                    str(one["version"]),
                    {str(key): float(value) for key, value in one["items"].items()},
                )
                for one in raw["tasks"]
            )
            known = {key: raw[key] for key in cls.__dataclass_fields__ if key != "tasks"}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PomonaError(f"{path}: is no result of `pomona eval` ({error})") from error
        if not tasks or not all(task.items for task in tasks):
            raise PomonaError(f"{path}: has no items; run the suite again")
        return cls(**known, tasks=tasks)


def row_name(task: str) -> str:
    return "mmlu" if task.startswith("mmlu_") else task


def run_suite(
    model: Model,
    suite: Suite,
    *,
    data: Path,
    work: Path,
    adapter: str | None = None,
    template: bool = False,
    limit: int | None = None,
    progress: Progress | None = None,
) -> EvalResult:
    """limit: items of each task. template: prompts go through the model's chat template.

    PomonaError for missing data or an adapter that the model does not have.
    """
    # Nothing is fetched and nothing is reported: lm-eval and datasets ask the hub otherwise. Their bars would
    # stand between ours.
    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "TQDM_DISABLE"):
        os.environ.setdefault(variable, "1")
    harness = lm_eval_model(model, adapter=adapter, progress=progress)
    import lm_eval
    from lm_eval.tasks import TaskManager

    name = model.adapter_for(adapter)
    adapter_hash = None if name is None else _hash(_directory(model, name) / WEIGHTS_FILE)
    work.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    found: list[TaskResult] = []
    with tempfile.TemporaryDirectory(prefix="pomona-eval-") as folder:
        manager = TaskManager(include_defaults=False)
        for number, task in enumerate(suite.tasks):
            if progress is not None:
                progress("tasks", number, len(suite.tasks))
            [path] = local_tasks((task.name,), data, Path(folder))
            results = lm_eval.simple_evaluate(
                model=harness,
                tasks=[path],
                task_manager=manager,
                num_fewshot=task.shots,
                limit=limit,
                bootstrap_iters=0,
                apply_chat_template=template,
                use_cache=str(work / f"{model.engine.fingerprint}-{adapter_hash or 'base'}"),
                verbosity="ERROR",
            )
            found.append(_result(task, results))
    return EvalResult(
        suite=suite.name,
        model=model.engine.directory.name,
        fingerprint=model.engine.fingerprint,
        adapter=name,
        adapter_hash=adapter_hash,
        template=template,
        limit=limit,
        lm_eval=_version(),
        date=datetime.date.today().isoformat(),
        seconds=time.perf_counter() - started,
        tasks=tuple(found),
    )


def _result(task: SuiteTask, results: Mapping[str, Any]) -> TaskResult:
    metric, _, chosen = task.metric.partition(",")
    items = {
        str(sample["doc_id"]): float(sample[metric])
        for sample in results["samples"][task.name]
        if sample.get("filter", "none") == chosen
    }
    if not items:
        raise PomonaError(
            f"{task.name}: lm-eval gave no {task.metric}; this version of it may name it otherwise"
        )
    return TaskResult(task.name, task.metric, task.shots, str(results["versions"][task.name]), items)


def compare(ours: EvalResult, theirs: EvalResult) -> dict[str, Interval]:
    """Row -> ours - theirs on the items that both have, with paired bootstrap intervals; "average" last."""
    a, b = _items(ours), _items(theirs)
    result: dict[str, Interval] = {}
    for row in a:
        shared = sorted(a[row].keys() & b.get(row, {}).keys())
        if shared:
            result[row] = paired_bootstrap(
                _ITEM, [(a[row][key], 1.0) for key in shared], [(b[row][key], 1.0) for key in shared]
            )
    if not result:
        raise PomonaError("the two results have no item in common; run the same suite on both")
    return result


def _items(result: EvalResult) -> dict[str, dict[tuple[str, str], float]]:
    found: dict[str, dict[tuple[str, str], float]] = {}
    for task in result.tasks:
        row = found.setdefault(row_name(task.task), {})
        row.update({(f"{task.task}/{task.metric}/{task.shots}", item): v for item, v in task.items.items()})
    return found


def _directory(model: Model, adapter: str) -> Path:
    return next(status.directory for status in model.adapters.status() if status.name == adapter)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _version() -> str:
    from importlib.metadata import version

    return version("lm_eval")


def write_result(result: EvalResult, path: Path) -> None:
    """The file appears whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps(result.to_json(), indent=1) + "\n", encoding="utf-8")
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
