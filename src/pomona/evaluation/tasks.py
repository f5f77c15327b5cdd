"""A model on a task's held-out set: every metric with its bootstrap interval of 95%.

    report = evaluate_task(model, "proofread", held_out_examples("proofread"), adapter="proofread")
    print(report.scores["f0.5"])

All requests go through the model's backend at once: a local model's scheduler batches them. Greedy, with the
same prompt and the same form of answers as in the features. An answer that is unusable (invalid, or too long
for the context) counts as wrong, and is counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pomona.adapters.metrics import Interval, bootstrap, paired_bootstrap
from pomona.adapters.tasks.registry import get
from pomona.adapters.tasks.task import Example, Task
from pomona.data.public_sets import data_folder
from pomona.errors import PomonaError
from pomona.runtime.backend import Generation, LanguageModel, Outcome
from pomona.runtime.dialects import Dialect
from pomona.runtime.model import Model
from pomona.runtime.output import wanted
from pomona.runtime.sampling import Sampling
from pomona.runtime.transcript import ToolCalls

TOGETHER = 32  # requests on their way at once
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TaskReport:
    """answers: what the model wrote, in the order of the examples; None: unusable. counts: per metric, of
    the rows that it is about, for comparisons."""

    task: str
    adapter: str | None
    rows: int
    unusable: int
    scores: dict[str, Interval]
    seconds: float
    new_tokens: int
    answers: tuple[str | None, ...] = field(repr=False)
    counts: dict[str, list[Sequence[float] | None]] = field(repr=False)

    @property
    def main(self) -> Interval:
        """The task's first metric."""
        return next(iter(self.scores.values()))

    def to_json(self) -> dict[str, Any]:
        scores = {name: vars(interval) for name, interval in self.scores.items()}
        return {
            "task": self.task,
            "adapter": self.adapter,
            "rows": self.rows,
            "unusable": self.unusable,
            "scores": scores,
            "seconds": self.seconds,
            "new_tokens": self.new_tokens,
        }


def held_out_examples(task: str, data: Path | None = None) -> list[Example]:
    """The task's held-out set; `data` by default the folder that POMONA_DATA names."""
    return get(task).held_out(data_folder(data))


def evaluate_task(
    model: LanguageModel,
    task: str | Task,
    rows: Sequence[Example | Mapping[str, Any]],
    *,
    adapter: str | None = None,
    limit: int | None = None,
    tool_choice: str = "auto",
    progress: Progress | None = None,
) -> TaskReport:
    """rows: examples, or rows of a recipe. adapter: as a session's; "base" for none. limit: so many rows,
    evenly over the set. tool_choice: of `tools`; "required" forces a call.

    PomonaError: no rows, an adapter that the model does not have. Not for a running event loop.
    """
    task = get(task) if isinstance(task, str) else task
    examples = [row if isinstance(row, Example) else task.example(row) for row in rows]
    if limit is not None and 0 < limit < len(examples):
        examples = [examples[i * len(examples) // limit] for i in range(limit)]
    if not examples:
        raise PomonaError(f"{task.name}: no rows to evaluate on; give some, or a larger limit")
    if isinstance(model, Model):
        model.adapter_for(adapter)  # refuses a name that the model does not know
    started = time.perf_counter()
    outcomes = asyncio.run(_answers(model, task, examples, adapter, tool_choice, progress))
    seconds = time.perf_counter() - started
    answers = tuple(None if one is None else _text(one) for one in outcomes)
    predictions = [_parsed(task, answer) for answer in answers]
    counts = {
        metric.name: [metric.counts(*pair) for pair in zip(predictions, examples, strict=True)]
        for metric in task.metrics
    }
    there = {name: [row for row in rows if row is not None] for name, rows in counts.items()}
    return TaskReport(
        task.name,
        next((one.adapter for one in outcomes if one is not None), None),
        len(examples),
        sum(prediction is None for prediction in predictions),
        {m.name: bootstrap(m, there[m.name]) for m in task.metrics if there[m.name]},
        seconds,
        sum(one.usage.new_tokens for one in outcomes if one is not None),
        answers,
        counts,
    )


def compare(ours: TaskReport, theirs: TaskReport) -> dict[str, Interval]:
    """Differences ours - theirs of two reports on the same rows, each metric on the same draws."""
    if ours.task != theirs.task or ours.rows != theirs.rows:
        raise PomonaError("compare: the reports are of other rows; evaluate both on the same ones")
    result = {}
    for metric in get(ours.task).metrics:
        pairs = [
            (a, b)
            for a, b in zip(ours.counts[metric.name], theirs.counts[metric.name], strict=True)
            if a is not None and b is not None
        ]
        if pairs:
            a, b = zip(*pairs, strict=True)
            result[metric.name] = paired_bootstrap(metric, a, b)
    return result


async def _answers(
    model: LanguageModel,
    task: Task,
    examples: Sequence[Example],
    adapter: str | None,
    tool_choice: str,
    progress: Progress | None,
) -> list[Outcome | None]:
    backend = model.backend()
    gate = asyncio.Semaphore(TOGETHER)
    done = 0

    async def one(example: Example) -> Outcome | None:
        nonlocal done
        async with gate:
            outcome: Outcome | None = None
            try:
                prepared = backend.prepare(_generation(model, task, example, adapter, tool_choice))
                if prepared.fits:
                    async for piece in backend.agenerate(prepared):
                        if isinstance(piece, Outcome):
                            outcome = piece
            except PomonaError:
                outcome = None  # a schema that cannot be obeyed, a call that was cut off: a wrong answer
            done += 1
            if progress is not None:
                progress(f"evaluate {task.name}", done, len(examples))
            return outcome

    return await asyncio.gather(*(one(example) for example in examples))


def _generation(
    model: LanguageModel, task: Task, example: Example, adapter: str | None, tool_choice: str
) -> Generation:
    request = example.request
    tokens = len(request.content) // 3
    if isinstance(model, Model):
        tokens = len(model.tokenizer.encode(request.content, parse_special=False))
    return Generation(
        task.entries(request),
        wanted(**task.form(request)),
        request.tools,
        tool_choice if request.tools else "none",
        Sampling(),
        task.tokens(tokens),
        adapter,
        streaming=False,
    )


def _text(outcome: Outcome) -> str:
    """The answer as a row would hold it: calls in the `list` dialect."""
    if not outcome.calls:
        return outcome.text
    [message] = Dialect("list").messages([ToolCalls(text=outcome.text, calls=outcome.calls)], ())[0]
    return str(message["content"])


def _parsed(task: Task, answer: str | None) -> Any:
    if answer is None:
        return None
    try:
        return task.parse(answer)
    except PomonaError:
        return None
