"""A suite of tasks on one model: lm-eval's tasks by lm-eval, those in which the model writes by ourselves.

    result = run_suite(model, suite_of("core"), data=folder, work=cache)

Log-likelihoods and answers are kept in `work` as they are made: an interrupted run goes on where it stopped.
What a run gives, and how two are compared, is in results.py.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pomona.errors import PomonaError
from pomona.evaluation.answers import AnswerStore, Asked
from pomona.evaluation.generation_task import GenerationTask, Question, Score, Setting
from pomona.evaluation.lm_eval_model import lm_eval_model
from pomona.evaluation.local_sets import local_tasks
from pomona.evaluation.results import MAX_ANSWER, EvalResult, TaskResult
from pomona.evaluation.suites import Suite, SuiteTask
from pomona.runtime.adapter_file import WEIGHTS_FILE
from pomona.runtime.answer import context_limit
from pomona.runtime.model import Model
from pomona.runtime.sampling import Sampling

Progress = Callable[[str, int, int], None]
CHAT_TOKENS = 96  # that a chat template may add to a turn; SmolLM2's adds 35


@dataclass(frozen=True)
class RunOptions:
    """adapter: as a session's; "base" for none. template: raw prompts go through the chat template. limit:
    items of each task. hub: rows come from the hub, not from local files. samples, temperature: of tasks that
    can use several answers (HumanEval). max_new_tokens: at most so many in an answer of our own tasks."""

    adapter: str | None = None
    template: bool = False
    limit: int | None = None
    hub: bool = False
    samples: int = 1
    temperature: float = 0.0
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.samples > 1 and self.temperature == 0.0:
            raise PomonaError(
                f"--samples {self.samples}: greedy answers are all the same; give --temperature as well "
                "(HumanEval's paper takes 0.2 for pass@1 and 0.8 for pass@100)"
            )


def run_suite(
    model: Model,
    suite: Suite,
    *,
    data: Path | None,
    work: Path,
    options: RunOptions | None = None,
    progress: Progress | None = None,
) -> EvalResult:
    """data: the folder of public sets; None with options.hub.

    PomonaError for missing data or an adapter that the model does not have.
    """
    options = options or RunOptions()
    name = model.adapter_for(options.adapter)
    mark = adapter_hash(model, name)
    work.mkdir(parents=True, exist_ok=True)
    kept = work / f"{model.engine.fingerprint}-{mark or 'base'}"
    started = time.perf_counter()
    found: list[TaskResult] = []
    left_out: list[str] = []
    of_lm_eval = _LmEval(model, data, kept, options, progress)
    store = AnswerStore(Path(f"{kept}.answers.jsonl"))
    asked = Asked(model, options.adapter, store, progress)
    setting = setting_of(model, None if options.hub else data, options)
    try:
        for number, task in enumerate(suite.tasks):
            if progress is not None:
                progress("tasks", number, len(suite.tasks))
            if _missing(task, setting):
                left_out.append(task.name)
            elif isinstance(task, GenerationTask):
                found += generate(task, asked, setting, options)
            else:
                found += of_lm_eval.run(task)
    finally:
        store.close()
    if not found:
        raise PomonaError(f"suite {suite.name}: none of its data is there; set POMONA_DATA, or give --data")
    return EvalResult(
        suite=suite.name,
        model=model.engine.directory.name,
        fingerprint=model.engine.fingerprint,
        adapter=name,
        adapter_hash=mark,
        template=options.template,
        limit=options.limit,
        lm_eval=of_lm_eval.version,
        date=datetime.date.today().isoformat(),
        seconds=time.perf_counter() - started,
        tasks=tuple(found),
        samples=options.samples,
        temperature=options.temperature,
        max_new_tokens=options.max_new_tokens,
        source="hub" if options.hub else "local",
        left_out=tuple(left_out),
    )


def setting_of(model: Model, data: Path | None, options: RunOptions) -> Setting:
    """What a task may know of a run on this model."""
    return Setting(
        data,
        options.template,
        options.samples,
        lambda text: len(model.tokenizer.encode(text, parse_special=False)),
        context_limit(model.engine) - CHAT_TOKENS,
    )


def generate(task: GenerationTask, asked: Asked, setting: Setting, options: RunOptions) -> list[TaskResult]:
    """A task's metrics, the main one first and with the answers."""
    questions = list(task.questions(setting))[: options.limit]
    if not questions:
        raise PomonaError(f"{task.name}: has no items; get its data set again")
    if (most := options.max_new_tokens) is not None:
        questions = [replace(one, max_new_tokens=min(one.max_new_tokens, most)) for one in questions]
    answers = asked.answers(questions, Sampling(temperature=options.temperature), task.name)
    return results_of(task, questions, answers)


def results_of(
    task: GenerationTask, questions: Sequence[Question], answers: Sequence[Sequence[str]]
) -> list[TaskResult]:
    """A task's scores as results, one for each metric."""
    scores = task.score(questions, answers)
    names = list(dict.fromkeys([*task.metrics, *(name for one in scores for name in one)]))
    return [_metric(task, name, name == task.metrics[0], questions, answers, scores) for name in names]


def _metric(
    task: GenerationTask,
    name: str,
    main: bool,
    questions: Sequence[Question],
    answers: Sequence[Sequence[str]],
    scores: Sequence[Mapping[str, Score]],
) -> TaskResult:
    there = {q.key: one[name] for q, one in zip(questions, scores, strict=True) if name in one}
    texts = {q.key: found[0][:MAX_ANSWER] for q, found in zip(questions, answers, strict=True)}
    return TaskResult(
        task.name,
        name,
        task.shots,
        task.version,
        {key: points / weight for key, (points, weight) in there.items()},
        {} if all(weight == 1.0 for _, weight in there.values()) else {k: w for k, (_, w) in there.items()},
        main,
        texts if main else {},
    )


class _LmEval:
    """lm-evaluation-harness, loaded when the first of its tasks comes."""

    def __init__(
        self, model: Model, data: Path | None, kept: Path, options: RunOptions, progress: Progress | None
    ) -> None:
        self._model, self._data, self._kept = model, data, kept
        self._options, self._progress = options, progress
        self._harness: Any = None
        self._manager: Any = None
        self.version = ""

    def run(self, task: SuiteTask) -> list[TaskResult]:
        options = self._options
        harness = self._loaded()
        import lm_eval

        with tempfile.TemporaryDirectory(prefix="pomona-eval-") as folder:
            tasks = [task.name] if self._data is None or options.hub else self._local(task, Path(folder))
            try:
                results = lm_eval.simple_evaluate(
                    model=harness,
                    tasks=tasks,
                    task_manager=self._manager,
                    num_fewshot=task.shots,
                    limit=options.limit,
                    bootstrap_iters=0,
                    apply_chat_template=options.template,
                    use_cache=str(self._kept),
                    verbosity="ERROR",
                )
            except (OSError, ValueError) as error:
                if not options.hub:
                    raise
                raise PomonaError(
                    f"{task.name}: cannot be had from the hub ({error}); use local files"
                ) from error
        return [
            _of_samples(task, metric, number == 0, results)
            for number, metric in enumerate((task.metric, *task.also))
        ]

    def _local(self, task: SuiteTask, folder: Path) -> list[str]:
        assert self._data is not None
        return local_tasks((task.name,), self._data, folder)

    def _loaded(self) -> Any:
        # lm-eval's and datasets' bars would stand between ours, and nothing is reported to anybody.
        quiet = ["HF_HUB_DISABLE_TELEMETRY", "TQDM_DISABLE"]
        if not self._options.hub:  # nothing is fetched: they ask the hub otherwise
            quiet += ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"]
        for variable in quiet:
            os.environ.setdefault(variable, "1")
        if self._harness is None:
            self._harness = lm_eval_model(self._model, adapter=self._options.adapter, progress=self._progress)
            from lm_eval.tasks import TaskManager

            self._manager = TaskManager(include_defaults=self._options.hub)
            self.version = _version()
        return self._harness


def _of_samples(task: SuiteTask, chosen: str, main: bool, results: Mapping[str, Any]) -> TaskResult:
    metric, _, filtered = chosen.partition(",")
    samples = [
        sample
        for sample in results["samples"][task.name]
        if sample.get("filter", "none") == filtered and metric in sample
    ]
    items = {str(sample["doc_id"]): float(sample[metric]) for sample in samples}
    if not items:
        raise PomonaError(f"{task.name}: lm-eval gave no {chosen}; this version of it may name it otherwise")
    answers = {}
    if task.generates and main:
        answers = {str(one["doc_id"]): str(one["resps"][0][0])[:MAX_ANSWER] for one in samples}
    version = str(results["versions"][task.name])
    return TaskResult(task.name, chosen, task.shots, version, items, main=main, answers=answers)


def _missing(task: GenerationTask | SuiteTask, setting: Setting) -> bool:
    """Whether an optional task has no data. What is not optional, and missing, is an error when it runs."""
    return task.optional and setting.data is not None and not setting.has(*task.needs)


def adapter_hash(model: Model, name: str | None) -> str | None:
    """A short hash of an adapter's weights; None for none."""
    if name is None:
        return None
    directory = next(status.directory for status in model.adapters.status() if status.name == name)
    with (directory / WEIGHTS_FILE).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _version() -> str:
    from importlib.metadata import version

    return version("lm_eval")
