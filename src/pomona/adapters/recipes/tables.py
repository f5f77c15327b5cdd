"""The recipes' words: text files of this package, one row a line, cells separated by |. Written for
pomona.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import TypeVar

from pomona.errors import PomonaError

T = TypeVar("T")


def text_of(file: str) -> str:
    """A text file of this package."""
    source = resources.files("pomona.adapters.recipes").joinpath("texts", file)
    try:
        return source.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise PomonaError(f"{source}: built-in text is missing; reinstall pomona") from error


@cache
def table(name: str) -> tuple[tuple[str, ...], ...]:
    """The rows of texts/NAME.txt; \\n in a cell is a line break."""
    lines = text_of(f"{name}.txt").splitlines()
    return tuple(tuple(cell.replace("\\n", "\n") for cell in line.split("|")) for line in lines if line)


def part(rows: Sequence[T], *, held_out: bool) -> list[T]:
    """Every fourth row is held out, the others train."""
    return [row for i, row in enumerate(rows) if (i % 4 == 3) == held_out]
