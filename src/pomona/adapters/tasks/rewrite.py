"""rewrite: the same message in another tone."""

from __future__ import annotations

from pathlib import Path

from pomona.adapters.faithfulness import FAITHFUL
from pomona.adapters.metrics import ROUGE_L, mean
from pomona.adapters.tasks.task import Example, Task


def _held_out(folder: Path) -> list[Example]:
    from pomona.adapters.recipes.rewrite import held_out

    return held_out(folder)


def _changed(prediction: str | None, example: Example) -> float:
    return float(bool(prediction) and prediction != example.request.content)


def _not_longer(prediction: str | None, example: Example) -> float | None:
    """Of the concise style: whether the text got no longer."""
    if example.request.style != "concise":
        return None
    return float(bool(prediction) and len(prediction or "") <= len(example.request.content))


TASK = Task(
    name="rewrite",
    description="Rewrites a text in another tone, with the same content.",
    instructions="You rewrite texts in another tone. You keep every fact and add none.",
    request="Rewrite this text so that it is {style}.",
    styles={
        "friendly": "friendly and warm",
        "professional": "professional and polite",
        "concise": "concise: as short as possible",
    },
    metrics=(ROUGE_L, FAITHFUL, mean("changed", _changed), mean("not_longer", _not_longer)),
    held_out=_held_out,
    held_out_note="invented messages of intents and names that no training row has",
    tokens=lambda content: 2 * content + 48,
)
