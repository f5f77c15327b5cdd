"""Many answers at once: the same as alone, kept as they are made, found again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pomona.adapters.tasks.tools import calls_of, tool_of
from pomona.errors import PomonaError
from pomona.evaluation.answers import AnswerStore, Asked
from pomona.evaluation.generation_task import Question
from pomona.runtime.model import Model
from pomona.runtime.sampling import Sampling
from pomona.runtime.tools import Tool

WEATHER = {
    "name": "weather.today",
    "description": "The weather of a city.",
    "parameters": {"type": "dict", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture(scope="module")
def model(smollm2_4bit_dir: Path) -> Model:
    return Model.load(str(smollm2_4bit_dir), threads=2)


def chat(text: str, **more: object) -> Question:
    return Question(text, ({"role": "user", "content": text},), 8, **more)  # type: ignore[arg-type]


def test_answers_do_not_depend_on_company(model: Model) -> None:
    questions = [Question("1", "One, two, three,", 6), chat("Name a fruit."), Question("2", "A, B, C,", 6)]
    together = Asked(model, "base").answers(questions, Sampling())
    alone = [Asked(model, "base").answers([one], Sampling())[0] for one in questions]
    assert together == alone
    assert together[0][0] == "".join(model.complete("One, two, three,", max_new_tokens=6, adapter="base"))
    messages = [{"role": "user", "content": "Name a fruit."}]
    assert together[1][0] == model.respond(messages, max_new_tokens=8, adapter="base")


def test_an_answer_ends_before_its_stop_sequence_and_begins_with_its_opening(model: Model) -> None:
    asked = Asked(model, "base")
    [[whole]] = asked.answers([Question("1", "One, two, three,", 6)], Sampling())
    [[cut]] = asked.answers([Question("1", "One, two, three,", 6, stops=(whole[3:6],))], Sampling())
    assert cut == whole[:3]
    [[opened]] = asked.answers([Question("1", "One, two,", 6, opening=" three,")], Sampling())
    assert opened == whole


def test_each_sample_has_its_own_seed_and_can_be_repeated(model: Model) -> None:
    question = chat("Write a word.", samples=6)
    [first] = Asked(model, "base").answers([question], Sampling(temperature=1.5))
    [again] = Asked(model, "base").answers([question], Sampling(temperature=1.5))
    assert len(first) == 6 and first == again and len(set(first)) > 1


def test_a_chat_that_does_not_fit_has_no_answer_and_a_raw_prompt_loses_its_beginning(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(model, "base")
    monkeypatch.setattr(asked, "limit", 40)
    long = "red green blue " * 30
    found = asked.answers([chat(long), Question("r", f"{long}One, two, three,", 6)], Sampling())
    assert found[0] == [""] and found[1][0].strip()
    with pytest.raises(PomonaError, match="does not fit"):
        asked.answers([Question("r", "x", 40)], Sampling())


def test_calls_come_in_one_dialect(model: Model) -> None:
    question = chat("What is the weather in Paris? Call weather_today.", tools=(tool_of(WEATHER),))
    question = Question(question.key, question.prompt, 64, tools=question.tools)
    [[answer]] = Asked(model, "base").answers([question], Sampling())
    for call in calls_of(answer):  # guided: a call, if there is one, obeys the schema
        assert call["name"] == "weather_today" and isinstance(call["arguments"]["city"], str)
    assert answer


def test_functions_that_no_call_can_obey_have_no_answer(model: Model) -> None:
    broken = {"type": "object", "properties": {}, "required": ["x"], "additionalProperties": False}
    tool = Tool("broken", "Cannot be called.", broken, lambda: None)
    assert Asked(model, "base").answers([chat("Call it.", tools=(tool,))], Sampling()) == [[""]]


def test_a_stopped_run_goes_on_where_it_stopped(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "work" / "answers.jsonl"
    questions = [Question(str(n), f"Number {n},", 4) for n in range(3)]
    store = AnswerStore(path)
    first = Asked(model, "base", store)
    found = first.answers(questions[:2], Sampling())
    store.close()
    assert first.computed == 2
    path.write_text(path.read_text() + '["half a li')  # the machine went down in the middle of a line
    store = AnswerStore(path)
    second = Asked(model, "base", store)
    assert second.answers(questions, Sampling())[:2] == found
    store.close()
    assert second.computed == 1
    store = AnswerStore(path)
    third = Asked(model, "base", store)
    third.answers(questions, Sampling())
    store.close()
    assert third.computed == 0


def test_other_options_are_other_answers(model: Model, tmp_path: Path) -> None:
    store = AnswerStore(tmp_path / "answers.jsonl")
    asked = Asked(model, "base", store)
    for question in (
        Question("1", "One,", 4),
        Question("1", "One,", 3),
        Question("1", "One,", 4, stops=("x",)),
        Question("1", "One", 4, opening=","),
        Question("1", ({"role": "user", "content": "One,"},), 4),
    ):
        asked.answers([question], Sampling())
    asked.answers([Question("1", "One,", 4)], Sampling(temperature=0.5))
    asked.answers([Question("another name", "One,", 4)], Sampling(seed=3))  # greedy: the same answer
    store.close()
    assert asked.computed == 6


def test_lines_that_are_none_are_no_answers(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"a": 1}\n[1, 2, 3]\nnull\n' + json.dumps(["key", "text"]) + "\n" + "[" * 100_000)
    store = AnswerStore(path)
    assert store.get("key") == "text" and store.get("a") is None
    store.put("new", "more")
    store.close()
    assert AnswerStore(path).get("new") == "more"
