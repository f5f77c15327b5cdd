"""What people are to grade, out of JSON lines.

    {"id": "81", "prompt": "Compose ...", "a": "...", "b": "..."}                  # a blind pair
    {"id": "m-7", "prompt": "the mail", "response": "its summary", "system": "4 bits"}

prompt is a text or messages that end with the user's. `id`, `license` and `source` may be missing; an id is
then the line's number. Rows are foreign: the first bad one refuses them all, by its line.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Literal

from pomona.adapters.data import BadRowError, Message, parse_label, parse_line, parse_messages
from pomona.errors import PomonaError
from pomona.evaluation.side_by_side import GradedItem

MAX_CHARACTERS = 100_000  # of one text
_KEYS = {"pairs": {"a", "b"}, "summaries": {"response", "system"}}
_COMMON = {"id", "prompt", "license", "source"}


def read_items(text: str, kind: Literal["pairs", "summaries"], *, first: int = 1) -> list[GradedItem]:
    """first: the number of the first line, where rows have no id. PomonaError: a bad row, or none."""
    found: list[GradedItem] = []
    for line, raw in enumerate(io.StringIO(text.removeprefix("\ufeff")), start=first):
        if not raw.strip():
            continue
        try:
            found.append(_item(parse_line(raw.encode("utf-8", "replace")), kind, str(line)))
        except BadRowError as error:
            raise PomonaError(f"line {line - first + 1}: {error}; see docs/grading.md") from error
    if not found:
        raise PomonaError("there is no line to import; give one JSON object a line")
    return found


def _item(row: Mapping[str, Any], kind: str, line: str) -> GradedItem:
    if unknown := sorted(set(row) - _KEYS[kind] - _COMMON):
        raise BadRowError("wrong schema", f"{unknown[0]!r} is no key of such a row")
    identity = row.get("id", line)
    if not isinstance(identity, str | int) or not 1 <= len(str(identity)) <= 200:
        raise BadRowError("wrong schema", "id is no short text")
    prompt = _prompt(row.get("prompt"))
    labels = (parse_label(row, "license"), parse_label(row, "source"))
    if kind == "pairs":
        a, b = (_text(row.get(side), side) for side in "ab")
        return GradedItem("", prompt, a, b, *labels, key=str(identity))
    system = row.get("system", "")
    if not isinstance(system, str) or len(system) > 200:
        raise BadRowError("wrong schema", "system is no short text")
    response = _text(row.get("response"), "response")
    return GradedItem("", prompt, response, None, *labels, key=str(identity), system=system)


def _prompt(value: Any) -> tuple[Message, ...]:
    messages = parse_messages(value, "user")
    if not messages or messages[-1]["role"] != "user":
        raise BadRowError("wrong schema", "the prompt does not end with the user's message")
    for number, message in enumerate(messages, start=1):
        if message["role"] == "system" and number > 1:
            raise BadRowError("wrong schema", f"message {number} is a system message; only the first may be")
        _text(message["content"], f"message {number}")
    return tuple(messages)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadRowError("wrong schema", f"{name} is no text, or an empty one")
    if len(value) > MAX_CHARACTERS:
        raise BadRowError("wrong schema", f"{name} has {len(value):,} characters")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise BadRowError("wrong schema", f"{name} has half of a surrogate pair, which is no text")
    return value
