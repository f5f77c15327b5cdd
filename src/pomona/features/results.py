"""What the features give back. Every result says who made it: `origin`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pomona.adapters.edits import Edit

Place = Literal["device", "server"]


@dataclass(frozen=True)
class Origin:
    """Who answered, and why. adapter: None for the base alone (the prompt does what it can there);
    requests: answers that it took, more than one for a long text."""

    place: Place
    model: str
    adapter: str | None
    why: str
    requests: int = 1


@dataclass(frozen=True)
class Summary:
    text: str
    origin: Origin
    parts: int = 1  # pieces that a long text was cut into
    complete: bool = True  # False: the answer was cut off


@dataclass(frozen=True)
class Corrected:
    """edits: in order; applied to the given text they give `text`. kept: pieces that were left as they were
    because the model's answer to them was no correction (cut off, empty, or of quite another length)."""

    text: str
    edits: tuple[Edit, ...]
    origin: Origin
    parts: int = 1
    kept: int = 0


@dataclass(frozen=True)
class Rewritten:
    text: str
    edits: tuple[Edit, ...]
    origin: Origin
    parts: int = 1
    complete: bool = True


@dataclass(frozen=True)
class Points:
    points: tuple[str, ...]
    origin: Origin
    parts: int = 1


@dataclass(frozen=True)
class Suggestions:
    replies: tuple[str, ...]
    questions: tuple[str, ...]  # that the mail asks
    origin: Origin


@dataclass(frozen=True)
class Priorities:
    """urgent: one answer for each notification, in their order."""

    urgent: tuple[bool, ...]
    origin: Origin

    @property
    def order(self) -> tuple[int, ...]:
        """The notifications' numbers, urgent ones first."""
        return tuple(sorted(range(len(self.urgent)), key=lambda i: not self.urgent[i]))


@dataclass(frozen=True)
class Extracted:
    """value: an instance of the class that was given as schema, or a JSON value."""

    value: Any
    origin: Origin
    parts: int = 1
