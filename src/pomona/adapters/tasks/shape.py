"""A JSON schema as a small model is shown it: the object that is wanted, with a word for each value.

    {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, ...}
    -> {"name": "text", "age": "whole number"}

It takes a fifth of the schema's tokens. The schema itself guides the answer, so nothing depends on the
model's understanding every keyword. Descriptions follow the word; lists show one item.
"""

from __future__ import annotations

import json
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
_LONGEST = 20_000


def shape(schema: Mapping[str, Any]) -> str:
    """The shape as JSON. PomonaError for a schema that is too large or refers to what is not there."""
    text = json.dumps(_shape(schema, schema, 0), ensure_ascii=False)
    if len(text) > _LONGEST:
        raise PomonaError(f"schema: its shape has {len(text):,} characters; ask for fewer fields at once")
    return text


def _shape(schema: Any, root: Mapping[str, Any], depth: int) -> Any:
    if depth > _DEEPEST:
        return "..."  # a recursive schema goes on like this
    if not isinstance(schema, Mapping):
        return "any"
    if isinstance(schema.get("$ref"), str):
        return _shape(_found(schema["$ref"], root), root, depth + 1)
    for key in ("anyOf", "oneOf", "allOf"):
        options = schema.get(key)
        if isinstance(options, list) and options:
            real = [option for option in options if option != {"type": "null"}]
            if len(real) == 1:
                return _shape(real[0], root, depth + 1)
            shapes = [_shape(option, root, depth + 1) for option in real]
            if all(isinstance(one, str) for one in shapes):
                return " | ".join(shapes)
            return shapes[0]
    if "const" in schema:
        return schema["const"]
    if isinstance(schema.get("enum"), list):
        return " | ".join(str(value) for value in schema["enum"])
    kind = schema.get("type")
    if kind == "object" or "properties" in schema:
        properties = schema.get("properties")
        if isinstance(properties, Mapping):
            return {name: _shape(one, root, depth + 1) for name, one in properties.items()}
        return {}
    if kind == "array":
        return [_shape(schema.get("items", {}), root, depth + 1)]
    word = _WORDS.get(kind, "any") if isinstance(kind, str) else "any"
    if isinstance(schema.get("format"), str):
        word = f"{word} ({schema['format']})"
    note = schema.get("description")
    return f"{word}: {' '.join(note.split())}" if isinstance(note, str) and note.strip() else word


def _found(reference: str, root: Mapping[str, Any]) -> Any:
    place: Any = root
    for part in reference.removeprefix("#").split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(place, Mapping) or part not in place:
            raise PomonaError(f"schema: {reference[:80]} is not in it; mend the reference")
        place = place[part]
    return place


def schema_of_shape(text: str) -> dict[str, Any]:
    """A schema with this shape, for shapes of plain words: what recipes ask for. ValueError for others."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("no object")
    return _schema(value)


def _schema(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return {
            "type": "object",
            "properties": {name: _schema(one) for name, one in value.items()},
            "required": list(value),
            "additionalProperties": False,
        }
    if isinstance(value, list) and len(value) == 1:
        return {"type": "array", "items": _schema(value[0]), "maxItems": 6}
    if value == "text":
        return {"type": "string", "maxLength": 80}
    if isinstance(value, str) and value in _KINDS:
        return {"type": _KINDS[value]}
    raise ValueError(f"{value!r} is no word for a value")
