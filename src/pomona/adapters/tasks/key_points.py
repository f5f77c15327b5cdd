"""key_points: the points of a text as a list, each in a few words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from pomona.adapters.faithfulness import faithful
from pomona.adapters.metrics import mean, rouge_l
from pomona.adapters.tasks.task import Example, Task


class KeyPoints(BaseModel):
    """The answer. Bounded, so that a small model comes to an end."""

    model_config = ConfigDict(extra="forbid")
    points: list[Annotated[str, Field(min_length=3, max_length=160)]] = Field(min_length=1, max_length=7)


def _held_out(folder: Path) -> list[Example]:
    from pomona.adapters.recipes.key_points import held_out

    return held_out(folder)


def _joined(value: KeyPoints | None) -> str:
    return "" if value is None else "\n".join(value.points)


TASK = Task(
    name="key_points",
    description="Lists the points of a text.",
    instructions="You list the points of a text, each in a few words, in the order of the text.",
    request="List the key points of this text as JSON.",
    metrics=(
        mean(
            "rouge_l",
            lambda value, ex: rouge_l(_joined(value), _joined(KeyPoints.model_validate_json(ex.answer))),
        ),
        mean(
            "faithful", lambda value, ex: float(bool(value) and faithful(_joined(value), ex.request.content))
        ),
    ),
    held_out=_held_out,
    held_out_note="invented mails of scenes and names that no training row has",
    output=KeyPoints,
    tokens=lambda content: 224,
)
