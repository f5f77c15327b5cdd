"""The judge of calls: BFCL's rules, on cases written by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pomona.adapters.tasks.registry import get
from pomona.adapters.tasks.task import Example, Request
from pomona.adapters.tasks.tools import calls_of, right_calls, same, tool_of
from pomona.runtime.guided import Guide

ACCEPTED = ({"math.area": {"base": [10], "unit": ["cm", ""], "names": [["a", "b"]], "rate": [0.5, 1.0]}},)


def call(**arguments: Any) -> list[dict[str, Any]]:
    return [{"name": "math_area", "arguments": arguments}]


RIGHT = {"base": 10, "unit": "cm", "names": ["A", "b"], "rate": 0.5}


@pytest.mark.parametrize(
    ("calls", "right"),
    [
        (call(**RIGHT), True),
        (call(**{**RIGHT, "rate": 1}), True),  # an int for a float
        (call(**{key: value for key, value in RIGHT.items() if key != "unit"}), True),  # may be left out
        (call(**{key: value for key, value in RIGHT.items() if key != "base"}), False),
        (call(**{**RIGHT, "base": "10"}), False),  # another type
        (call(**{**RIGHT, "base": 10.0}), False),
        (call(**{**RIGHT, "base": True}), False),
        (call(**{**RIGHT, "extra": 1}), False),
        (call(**{**RIGHT, "names": ["b", "a"]}), False),
        ([], False),
        (call(**RIGHT) * 2, False),
        ([{"name": "other", "arguments": RIGHT}], False),
    ],
)
def test_a_call_is_right_or_not(calls: list[dict[str, Any]], right: bool) -> None:
    assert right_calls(calls, ACCEPTED) == right


def test_several_calls_may_come_in_any_order() -> None:
    wanted = ({"f": {"x": [1]}}, {"f": {"x": [2]}})
    calls = [{"name": "f", "arguments": {"x": n}} for n in (2, 1)]
    assert right_calls(calls, wanted)
    assert not right_calls([calls[0], calls[0]], wanted)


def test_texts_are_compared_without_case_and_marks() -> None:
    assert same("New-York, NY", "new york ny") and not same("New York", "Boston")
    assert same({"a": 1}, {"a": [1, 2]}) and not same({"a": 3}, {"a": [1, 2]})


def test_calls_are_read_from_the_dialect() -> None:
    text = (
        'Sure. <tool_call>[{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}]</tool_call>'
    )
    assert [one["name"] for one in calls_of(text)] == ["f", "g"]
    assert calls_of('<tool_call>{"name": "f", "arguments": {}}</tool_call>') == [
        {"name": "f", "arguments": {}}
    ]
    for broken in (
        "f(1)",
        "<tool_call>[{]</tool_call>",
        '<tool_call>[{"name": "f"}]</tool_call>',
        "<tool_call>3</tool_call>",
    ):
        assert calls_of(broken) == []


def test_foreign_schemas_become_json_schemas() -> None:
    tool = tool_of(
        {
            "name": "math.area",
            "description": "",
            "parameters": {
                "type": "dict",
                "properties": {
                    "base": {"type": "float", "default": 3, "description": "d"},
                    "pair": {"type": "tuple", "items": {"type": "any"}},
                    "type": {"type": "string", "optional": True, "enum": []},
                },
                "required": ["base"],
            },
        }
    )
    assert tool.name == "math_area" and tool.description
    assert tool.parameters == {
        "type": "object",
        "properties": {
            "base": {"type": "number", "description": "d"},
            "pair": {"type": "array", "items": {}},
            "type": {"type": "string"},
        },
        "required": ["base"],
    }
    Guide.json_schema(tool.parameters)


def test_the_metric_takes_rows_and_cases() -> None:
    accuracy = get("tools").metrics[0]
    tool = tool_of({"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}})
    answer = "<tool_call>" + json.dumps([{"name": "f", "arguments": {"x": 1}}]) + "</tool_call>"
    row = Example(Request("q", tools=(tool,)), answer, "here", "MIT")
    case = Example(Request("q", tools=(tool,)), "", "here", "MIT", [{"f": {"x": [1, 2]}}])
    for example in (row, case):
        assert accuracy.counts(answer, example) == (1.0, 1.0)
        assert accuracy.counts("no call", example) == (0.0, 1.0)
        assert accuracy.counts(None, example) == (0.0, 1.0)
