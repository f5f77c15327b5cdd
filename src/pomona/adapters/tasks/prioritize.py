"""prioritize: whether a notification is urgent, one at a time; a list is many requests in one batch."""

from __future__ import annotations

from pathlib import Path

from pomona.adapters.metrics import Metric, f_beta, mean
from pomona.adapters.tasks.task import Example, Task

URGENT, CALM = "urgent", "not urgent"


def _held_out(folder: Path) -> list[Example]:
    from pomona.adapters.recipes.prioritize import held_out

    return held_out(folder)


def _urgent_counts(prediction: str | None, example: Example) -> tuple[float, float, float]:
    said, right = prediction == URGENT, example.answer == URGENT
    return float(said and right), float(said), float(right)


TASK = Task(
    name="prioritize",
    description="Tells urgent notifications from others.",
    instructions=(
        "You sort notifications. Urgent are those where something is lost if nobody looks within the hour: "
        "safety, money, or somebody who waits. All others are not urgent."
    ),
    request="Is this notification urgent? Answer with urgent or not urgent.",
    metrics=(
        mean("accuracy", lambda prediction, example: float(prediction == example.answer)),
        Metric("urgent_f1", _urgent_counts, lambda sums: f_beta(sums, 1.0)),
    ),
    held_out=_held_out,
    held_out_note="notifications of templates and names that no training row has",
    choices=(URGENT, CALM),
    tokens=lambda content: 8,
)
