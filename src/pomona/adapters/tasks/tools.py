"""tools: calls of functions. The prompt is the model's own dialect of tools (runtime/dialects.py).

Answers are judged as BFCL judges them, by the syntax tree of the call: the right function, no argument that
is not declared, every required one, and each value among the accepted ones. Texts are compared without case,
spaces and the marks , . / - _ * ^; an int may stand for a float, nothing else for another type.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pomona.adapters.metrics import mean
from pomona.adapters.tasks.task import Example, Task
from pomona.runtime.tools import Tool

_TYPES = {
    "dict": "object",
    "float": "number",
    "tuple": "array",
    "any": None,
    "int": "integer",
    "bool": "boolean",
}
_MARKS = re.compile(r"[ ,./\-_*^'\"]")
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


def tool_of(function: dict[str, Any]) -> Tool:
    """A function as BFCL and glaive describe it, as a Tool that cannot be called.

    Dots in names become underscores, and the types of Python (dict, float, tuple) those of JSON schema.
    """
    name = tool_name(str(function["name"]))
    parameters = _schema(function.get("parameters") or {"type": "object", "properties": {}})
    parameters["type"] = "object"
    parameters.setdefault("properties", {})
    return Tool(name, str(function.get("description") or name), parameters, _never)


def tool_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64]


def _never(**_: Any) -> str:
    raise RuntimeError("a function of a data set, which cannot be called")


def _schema(value: Any) -> Any:
    """A schema with JSON schema's names of types and without what guides refuse."""
    if isinstance(value, list):
        return [_schema(item) for item in value]
    if not isinstance(value, dict):
        return value
    result: dict[str, Any] = {}
    for key, item in value.items():
        if key == "properties" and isinstance(item, dict):
            result[key] = {name: _schema(one) for name, one in item.items()}
        elif key == "type" and isinstance(item, str):
            kind = _TYPES.get(item.lower(), item.lower())
            if kind is not None:
                result[key] = kind
        elif key in ("required", "enum", "description", "items"):
            result[key] = _schema(item)
    if result.get("type") in ("string", "integer", "number", "boolean"):
        result.pop("items", None)
        result.pop("properties", None)
    if "enum" in result and not result["enum"]:
        del result["enum"]
    return result


def calls_of(answer: str) -> list[dict[str, Any]]:
    """[{"name", "arguments"}] of an answer in the `list` dialect; empty if there is none that can be read."""
    found: list[dict[str, Any]] = []
    for text in _CALL.findall(answer):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            continue
        found += [
            {"name": str(call.get("name")), "arguments": call["arguments"]}
            for call in (value if isinstance(value, list) else [value])
            if isinstance(call, dict) and isinstance(call.get("arguments"), dict)
        ]
    return found


def right_calls(calls: list[dict[str, Any]], answers: tuple[dict[str, dict[str, list[Any]]], ...]) -> bool:
    """Whether the calls are the wanted ones, in any order."""
    if len(calls) != len(answers):
        return False
    left = list(answers)
    for call in calls:
        for wanted in left:
            [(name, accepted)] = wanted.items()
            if tool_name(name) == call["name"] and _right_arguments(call["arguments"], accepted):
                left.remove(wanted)
                break
        else:
            return False
    return True


def _right_arguments(given: dict[str, Any], accepted: dict[str, list[Any]]) -> bool:
    if given.keys() - accepted.keys():
        return False
    for name, values in accepted.items():
        if name not in given:
            if "" not in values:
                return False
        elif not any(same(given[name], value) for value in values):
            return False
    return True


def same(given: Any, wanted: Any) -> bool:
    """Whether a value is an accepted one; inside lists and objects too."""
    if isinstance(wanted, str):
        return isinstance(given, str) and _MARKS.sub("", given).lower() == _MARKS.sub("", wanted).lower()
    if isinstance(wanted, bool) or isinstance(given, bool):
        return given is wanted
    if isinstance(wanted, float):
        return isinstance(given, int | float) and float(given) == wanted
    if isinstance(wanted, list):
        return (
            isinstance(given, list)
            and len(given) == len(wanted)
            and all(same(a, b) for a, b in zip(given, wanted, strict=True))
        )
    if isinstance(wanted, dict):  # of BFCL: each key with its accepted values
        return isinstance(given, dict) and _right_arguments(
            given, {key: value if isinstance(value, list) else [value] for key, value in wanted.items()}
        )
    return type(given) is type(wanted) and bool(given == wanted)


def _held_out(folder: Path) -> list[Example]:
    from pomona.adapters.recipes.tools import held_out

    return held_out(folder)


def _wanted(example: Example) -> tuple[dict[str, dict[str, list[Any]]], ...]:
    if example.reference is not None:
        return tuple(example.reference)
    # Of a training row: exactly these calls.
    return tuple(
        {call["name"]: {key: [value] for key, value in call["arguments"].items()}}
        for call in calls_of(example.answer)
    )


def _accuracy(prediction: str | None, example: Example) -> float:
    calls = calls_of(prediction or "")
    return float(right_calls(calls, _wanted(example)))


def _right_function(prediction: str | None, example: Example) -> float:
    names = sorted(call["name"] for call in calls_of(prediction or ""))
    return float(names == sorted(tool_name(name) for wanted in _wanted(example) for name in wanted))


TASK = Task(
    name="tools",
    description="Calls the functions that answer a request.",
    instructions="You are a helpful assistant that calls functions.",
    request="",
    metrics=(mean("ast_accuracy", _accuracy), mean("right_function", _right_function)),
    held_out=_held_out,
    held_out_note="the cases `simple_python` and `live_simple` of BFCL v4",
    takes_tools=True,
    tokens=lambda content: 192,
)
