"""Function calling: the leaderboard's rules, one by one, and its own answers judged right."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from pomona.adapters.tasks.tools import tool_name
from pomona.data.public_sets import data_folder
from pomona.errors import PomonaError
from pomona.evaluation.bfcl import BFCL
from pomona.evaluation.bfcl_checker import right
from pomona.evaluation.generation_task import GenerationTask, Question, Setting

TYPES = {
    "text": {"type": "string"},
    "count": {"type": "integer"},
    "share": {"type": "float"},
    "on": {"type": "boolean"},
    "names": {"type": "array", "items": {"type": "string"}},
    "sizes": {"type": "array", "items": {"type": "integer"}},
    "place": {"type": "dict", "properties": {"city": {"type": "string"}, "zip": {"type": "integer"}}},
    "rows": {"type": "array", "items": {"type": "dict"}},
}


def judged(arguments: dict[str, Any], accepted: dict[str, list[Any]], required: tuple[str, ...] = ()) -> bool:
    function = {
        "name": "a.b",
        "parameters": {"type": "dict", "properties": TYPES, "required": list(required)},
    }
    return right([{"name": "a_b", "arguments": arguments}], [{"a.b": accepted}], [function])


@pytest.mark.parametrize(
    ("arguments", "accepted", "wanted"),
    [
        # texts: without case, spaces and marks
        ({"text": "April 1, 2024"}, {"text": ["april 1 2024"]}, True),
        ({"text": "it's"}, {"text": ['it"s']}, True),
        ({"text": "May 1"}, {"text": ["April 1"]}, False),
        ({"text": 3}, {"text": ["3"]}, False),
        # numbers: an int may stand for a float, and for nothing else
        ({"share": 2}, {"share": [2.0]}, True),
        ({"share": 2}, {"share": [2]}, True),
        ({"count": 2.0}, {"count": [2]}, False),
        ({"count": True}, {"count": [1]}, False),
        ({"on": True}, {"on": [True]}, True),
        ({"on": "true"}, {"on": [True]}, False),
        # an accepted text where a number is declared stands for a variable
        ({"count": "n"}, {"count": ["n"]}, True),
        # lists in order, elements as texts are compared
        ({"names": ["Ann B.", "Cy"]}, {"names": [["ann b", "cy"]]}, True),
        ({"names": ["Cy", "Ann"]}, {"names": [["Ann", "Cy"]]}, False),
        ({"sizes": [1, 2]}, {"sizes": [[1, 2]]}, True),
        ({"sizes": [1, "2"]}, {"sizes": [[1, 2]]}, False),
        # dictionaries: accepted values of each key, keys that may be left out
        ({"place": {"city": "New York"}}, {"place": [{"city": ["new york"], "zip": ["", 5]}]}, True),
        ({"place": {"city": "Rome", "zip": 5}}, {"place": [{"city": ["Rome"], "zip": ["", 5]}]}, True),
        ({"place": {"zip": 5}}, {"place": [{"city": ["Rome"], "zip": ["", 5]}]}, False),
        ({"place": {"city": "Rome", "x": 1}}, {"place": [{"city": ["Rome"]}]}, False),
        ({"rows": [{"a": 1}, {"a": 2}]}, {"rows": [[{"a": [1]}, {"a": [2, 3]}]]}, True),
        ({"rows": [{"a": 1}]}, {"rows": [[{"a": [1]}, {"a": [2]}]]}, False),
        # what may be left out, what may not, what is not declared
        ({}, {"text": ["", "x"]}, True),
        ({}, {"text": ["x"]}, False),
        ({"text": "x", "other": 1}, {"text": ["x"], "other": [1]}, False),
        ({"text": "x", "count": 1}, {"text": ["x"]}, False),
    ],
)
def test_an_argument_is_right_by_the_rules(
    arguments: dict[str, Any], accepted: dict[str, list[Any]], wanted: bool
) -> None:
    assert judged(arguments, accepted) is wanted


def test_a_required_argument_is_required_even_if_it_may_be_empty() -> None:
    assert not judged({}, {"text": ["", "x"]}, required=("text",))


def test_calls_match_in_any_order_and_each_one_once() -> None:
    functions = [
        {"name": name, "parameters": {"properties": {"x": {"type": "integer"}}, "required": ["x"]}}
        for name in ("f", "g")
    ]
    f1, f2, g1 = ({"name": name, "arguments": {"x": x}} for name, x in (("f", 1), ("f", 2), ("g", 1)))
    wanted = [{"f": {"x": [1]}}, {"f": {"x": [2]}}, {"g": {"x": [1]}}]
    assert right([g1, f2, f1], wanted, functions)
    assert not right([g1, f1, f1], wanted, functions)
    assert not right([g1, f1], wanted, functions)
    assert not right([], wanted, functions)
    assert right([], [], functions)  # where no function fits, no call is right
    assert not right([f1], [], functions)


# --- the set


def by_name(name: str) -> GenerationTask:
    return next(task for task in BFCL if task.name == name)


def write(folder: Path, row: dict[str, Any], answer: dict[str, Any]) -> None:
    (folder / "bfcl/possible_answer").mkdir(parents=True, exist_ok=True)
    (folder / "bfcl/BFCL_v4_simple_python.json").write_text(json.dumps(row) + "\n")
    (folder / "bfcl/possible_answer/BFCL_v4_simple_python.json").write_text(json.dumps(answer) + "\n")


ROW = {
    "id": "simple_0",
    "question": [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Area of 2?"}]],
    "function": [
        {
            "name": "geo.area",
            "description": "Area of a square.",
            "parameters": {"type": "dict", "properties": {"side": {"type": "float"}}, "required": ["side"]},
        }
    ],
}
ANSWER = {"id": "simple_0", "ground_truth": [{"geo.area": {"side": [2.0]}}]}


def test_functions_go_to_the_model_as_tools(tmp_path: Path) -> None:
    write(tmp_path, ROW, ANSWER)
    [question] = by_name("bfcl_simple").questions(Setting(tmp_path))
    assert [tool.name for tool in question.tools] == ["geo_area"]
    assert [one["role"] for one in question.prompt] == ["system", "user"]  # type: ignore[index]
    call = '<tool_call>[{"name": "geo_area", "arguments": {"side": 2}}]</tool_call>'
    task = by_name("bfcl_simple")
    scores = task.score([question] * 2, [[call], ["It is 4."]])
    assert [one["accuracy"][0] for one in scores] == [1.0, 0.0]


@pytest.mark.parametrize(
    "change",
    [
        {"question": []},
        {"question": [[{"role": "tool", "content": "x"}]]},
        {"function": [{"description": "no name"}]},
        {"id": "another"},
    ],
)
def test_a_case_that_is_none_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    write(tmp_path, {**ROW, **change}, ANSWER)
    with pytest.raises(PomonaError, match="a case has another form"):
        by_name("bfcl_simple").questions(Setting(tmp_path))


@pytest.mark.data
@pytest.mark.parametrize("name", ["bfcl_simple", "bfcl_multiple", "bfcl_parallel", "bfcl_live_simple"])
def test_the_boards_own_answers_are_right_and_spoilt_ones_are_not(name: str) -> None:
    task = by_name(name)
    questions = list(task.questions(Setting(data_folder())))
    assert len(questions) >= 200
    wrong = [one.key for one in questions if not _judge(one, _calls(one))]
    # Answers whose values are not of the type that the function declares are wrong on the board too.
    assert len(wrong) <= len(questions) // 50, wrong
    assert not any(_judge(one, _calls(one)[:-1]) for one in questions)
    for one in questions:
        spoilt = copy.deepcopy(_calls(one))
        spoilt[0]["arguments"]["no such argument"] = 1
        assert not _judge(one, spoilt)
        spoilt = copy.deepcopy(_calls(one))
        spoilt[0]["name"] += "_x"
        assert not _judge(one, spoilt)


def _judge(question: Question, calls: list[dict[str, Any]]) -> bool:
    return right(calls, question.expected.wanted, question.expected.functions)


def _calls(question: Question) -> list[dict[str, Any]]:
    """The wanted calls with the first accepted value of every argument."""
    return [
        {
            "name": tool_name(name),
            "arguments": {
                key: _first(values[0]) for key, values in accepted.items() if values[:1] not in ([""], [])
            },
        }
        for wanted in question.expected.wanted
        for name, accepted in wanted.items()
    ]


def _first(value: Any) -> Any:
    """Dictionaries hold lists of accepted values for every key."""
    if isinstance(value, dict):
        return {key: _first(values[0]) for key, values in value.items() if values and values[0] != ""}
    return [_first(one) for one in value] if isinstance(value, list) else value
