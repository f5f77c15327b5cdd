"""extract: what a JSON schema names, found in a text. `FACTS` is the schema for those who give none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from pomona.adapters.metrics import exact, field_metric, mean
from pomona.adapters.tasks.task import Example, Task
from pomona.runtime.output import closed

Short = Annotated[str, Field(max_length=80)]


class Contact(BaseModel):
    """Fields as they stand in the text; empty where it has none."""

    model_config = ConfigDict(extra="forbid")
    name: Short
    email: Short
    phone: Short
    company: Short


class Event(BaseModel):
    model_config = ConfigDict(extra="forbid")
    title: Short
    date: Short
    time: Short
    place: Short


class Facts(BaseModel):
    model_config = ConfigDict(extra="forbid")
    contacts: list[Contact] = Field(max_length=6)
    events: list[Event] = Field(max_length=6)


FACTS = closed(Facts.model_json_schema())


def _held_out(folder: Path) -> list[Example]:
    from pomona.adapters.recipes.extract import held_out

    return held_out(folder)


def _right(example: Example) -> Any:
    return json.loads(example.answer)


def _grounded(value: Any, example: Example) -> float | None:
    """The share of the texts in the answer that stand in the content."""
    found = [leaf for leaf in _leaves(value) if leaf]
    if not found:
        return None
    content = " ".join(example.request.content.casefold().split())
    return sum(" ".join(leaf.casefold().split()) in content for leaf in found) / len(found)


def _leaves(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value] if isinstance(value, str) else []


TASK = Task(
    name="extract",
    description="Finds contacts, dates, events, or what a JSON schema names.",
    instructions=(
        "You extract data from texts. You copy the values as they are written, and leave a text empty if the "
        "value is not there."
    ),
    request="Extract the data of this text",
    metrics=(field_metric("field_f1", _right), exact("exact", _right), mean("grounded", _grounded)),
    held_out=_held_out,
    held_out_note=(
        "invented mails, cards and invitations of templates and names that no training row has, and the "
        "pages of html_extruct that training leaves out"
    ),
    takes_schema=True,
    tokens=lambda content: 96 + content,
)
