"""reply: the questions that a mail asks, and three short replies to choose from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from pomona.adapters.metrics import mean, rouge_l
from pomona.adapters.tasks.task import Example, Task


class Replies(BaseModel):
    """The answer. The questions come first: what is asked decides what can be replied."""

    model_config = ConfigDict(extra="forbid")
    questions: list[Annotated[str, Field(min_length=3, max_length=160)]] = Field(max_length=4)
    replies: list[Annotated[str, Field(min_length=2, max_length=160)]] = Field(min_length=3, max_length=3)


def _held_out(folder: Path) -> list[Example]:
    from pomona.adapters.recipes.reply import held_out

    return held_out(folder)


def _right(example: Example) -> Replies:
    return Replies.model_validate_json(example.answer)


def _questions(value: Replies | None, example: Example) -> float:
    return rouge_l("\n".join(value.questions if value else ()), "\n".join(_right(example).questions))


def _best_reply(value: Replies | None, example: Example) -> float:
    """The mean over our replies of their likeness to the nearest good one."""
    if value is None:
        return 0.0
    good = _right(example).replies
    return sum(max(rouge_l(one, other) for other in good) for one in value.replies) / len(value.replies)


def _different(value: Replies | None, example: Example) -> float:
    return 0.0 if value is None else float(len({reply.casefold() for reply in value.replies}) == 3)


TASK = Task(
    name="reply",
    description="Suggests three short replies to a mail, and lists the questions that it asks.",
    instructions=(
        "You help to answer mails. You list the questions that the mail asks its reader, then three short, "
        "different replies that the reader could send."
    ),
    request="List the questions of this mail and suggest three replies, as JSON.",
    metrics=(
        mean("questions_rouge_l", _questions),
        mean("replies_rouge_l", _best_reply),
        mean("replies_differ", _different),
    ),
    held_out=_held_out,
    held_out_note="invented mails of scenes and names that no training row has",
    output=Replies,
    tokens=lambda content: 224,
)
