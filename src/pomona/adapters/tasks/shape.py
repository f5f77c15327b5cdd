"""A JSON schema as a small model is shown it: the names of the values that are wanted.

    contacts [name, email, phone], ticket {title, urgent: true or false, kind: bug | wish}

[] is a list of such items, {} an object; what is no plain text has a word for its kind, and a description
follows it. It takes a tenth of the schema's tokens. The schema itself guides the answer, so nothing depends
on the model's understanding every keyword. There is deliberately no word for a plain text: a small model
without an adapter copies any word that stands where a value belongs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pomona.errors import PomonaError

_WORDS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "null": "nothing",
}
_KINDS = {word: kind for kind, word in _WORDS.items()}
_DEEPEST = 12
_LONGEST = 8_000
_TOKEN = re.compile(r"([\w .-]+?)(?:: ([^,\[\]{}]+)| ([\[{])|(?=[,\]}]|$))")


def shape(schema: Mapping[str, Any]) -> str:
    """The shape. PomonaError for a schema that is too large or refers to what is not there."""
    text = _said(schema, schema, 0)
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1]
    if len(text) > _LONGEST:
        raise PomonaError(f"schema: its shape has {len(text):,} characters; ask for fewer fields at once")
    return text


def _said(schema: Any, root: Mapping[str, Any], depth: int) -> str:
    if depth > _DEEPEST:
        return "..."  # a recursive schema goes on like this
    if not isinstance(schema, Mapping):
        return "anything"
    if isinstance(schema.get("$ref"), str):
        return _said(_found(schema["$ref"], root), root, depth + 1)
    for key in ("anyOf", "oneOf", "allOf"):
        options = schema.get(key)
        if isinstance(options, list) and options:
            real = [option for option in options if option != {"type": "null"}]
            return " | ".join(dict.fromkeys(_said(option, root, depth + 1) for option in real)) or "nothing"
    if "const" in schema:
        return str(schema["const"])
    if isinstance(schema.get("enum"), list):
        return " | ".join(str(value) for value in schema["enum"])
    kind = schema.get("type")
    if kind == "object" or "properties" in schema:
        properties = schema.get("properties")
        named = properties.items() if isinstance(properties, Mapping) else ()
        return "{" + ", ".join(_field(name, _said(one, root, depth + 1)) for name, one in named) + "}"
    if kind == "array":
        item = _said(schema.get("items", {}), root, depth + 1)
        return "[" + (item[1:-1] if item.startswith("{") and item.endswith("}") else item) + "]"
    word = _WORDS.get(kind, "anything") if isinstance(kind, str) else "anything"
    if isinstance(schema.get("format"), str):
        word = f"{word} ({schema['format']})"
    note = schema.get("description")
    return f"{word}, {' '.join(note.split())}" if isinstance(note, str) and note.strip() else word


def _field(name: str, said: str) -> str:
    if said == "text":
        return name
    return f"{name} {said}" if said[:1] in "[{" else f"{name}: {said.removeprefix('text, ')}"


def _found(reference: str, root: Mapping[str, Any]) -> Any:
    place: Any = root
    for part in reference.removeprefix("#").split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(place, Mapping) or part not in place:
            raise PomonaError(f"schema: {reference[:80]} is not in it; mend the reference")
        place = place[part]
    return place


def schema_of_shape(text: str) -> dict[str, Any]:
    """A schema with this shape, for shapes of plain values: what recipes ask for. ValueError for others."""
    schema, end = _object(text, 0)
    if end != len(text):
        raise ValueError(f"{text[end:][:40]!r} is no part of a shape")
    return schema


def _object(text: str, at: int) -> tuple[dict[str, Any], int]:
    properties: dict[str, Any] = {}
    while at < len(text) and text[at] not in "]}":
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"{text[at:][:40]!r} is no field")
        name, word, bracket = match.groups()
        at = match.end()
        if bracket:
            value, at = _object(text, at)
            if text[at : at + 1] != ("]" if bracket == "[" else "}"):
                raise ValueError("a bracket is not closed")
            at += 1
            properties[name] = {"type": "array", "items": value, "maxItems": 6} if bracket == "[" else value
        elif word:
            if word not in _KINDS:
                raise ValueError(f"{word!r} is no kind of value")
            properties[name] = {"type": _KINDS[word]}
        else:
            properties[name] = {"type": "string", "maxLength": 80}
        if text[at : at + 2] == ", ":
            at += 2
    if not properties:
        raise ValueError("no field")
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }, at
