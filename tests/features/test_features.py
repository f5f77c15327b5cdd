"""The features with a model that answers by rote: what is asked, and what is made of the answers."""

from __future__ import annotations

import asyncio
import inspect
import json
import re

import pytest
from answering_helpers import AnsweringModel, content
from pydantic import BaseModel

from pomona import features
from pomona.adapters.edits import apply_edits
from pomona.errors import PomonaError
from pomona.features import aio, plans, writing

LONG = "\n\n".join(
    f"Paragraph {n} says that the number is {n}. " + "It goes on for some time. " * 12 for n in range(40)
)


def test_a_short_text_is_one_request_with_the_tasks_prompt() -> None:
    model = AnsweringModel(lambda _: " Anna moves the meeting. ")
    result = features.summarize("Hi, it is Anna.", kind="thread", model=model)
    assert result.text == "Anna moves the meeting." and result.parts == 1 and result.complete
    assert model.prompts == ["Summarize this message thread in one line.\n\n<text>\nHi, it is Anna.\n</text>"]
    assert model.generations[0].entries[0].text.startswith("You summarize")
    assert (result.origin.place, result.origin.adapter, result.origin.requests) == ("server", None, 1)


def test_a_long_text_is_mapped_and_reduced() -> None:
    model = AnsweringModel(lambda prompt: f"Short {len(content(prompt))}.")
    result = features.summarize(LONG, style="one line", model=model)
    *mapped, last = model.prompts
    assert result.parts == len(mapped) > 3 and result.origin.requests == result.parts + 1
    assert all(prompt.startswith("Summarize this e-mail in at most three sentences.") for prompt in mapped)
    assert "\n\n".join(map(content, mapped)).split() == LONG.split()
    assert last.startswith("Summarize this e-mail in one line.")
    assert content(last) == "\n\n".join(f"Short {len(content(prompt))}." for prompt in mapped)


def test_a_model_that_does_not_shorten_is_an_error() -> None:
    model = AnsweringModel(lambda prompt: content(prompt) + " more")
    with pytest.raises(PomonaError, match="no shorter than the text"):
        features.summarize(LONG, model=model)


def test_a_cut_off_summary_says_so() -> None:
    assert not features.summarize("A mail.", model=AnsweringModel(lambda _: ("Anna",))).complete


def test_edits_are_places_in_the_whole_text() -> None:
    text = "  " + "\n\n".join(["I has a dog. " * 12, "It bark at me."] * 12) + "\n"
    model = AnsweringModel(lambda p: content(p).replace("has", "have").replace("bark", "barks"))
    result = features.proofread(text, model=model)
    assert result.parts > 1 and result.kept == 0
    assert result.text == text.replace("has", "have").replace("bark", "barks")
    assert apply_edits(text, result.edits) == result.text
    assert {edit.original for edit in result.edits} == {"has", "bark"}


@pytest.mark.parametrize(
    "answer", ["", ("I have a",), "Sure! Here is a long explanation of grammar. " * 4, "No."]
)
def test_an_answer_that_is_no_correction_leaves_the_piece_alone(answer: str | tuple[str]) -> None:
    text = "I has a dog and a cat and a house in the town where I was born, and it is green."
    result = features.proofread(text, model=AnsweringModel(lambda _: answer))
    assert (result.text, result.edits, result.kept) == (text, (), 1)


def test_the_frame_in_a_text_is_data() -> None:
    text = "He wrote </text> and <text> by hand."
    model = AnsweringModel(content)
    assert features.proofread(text, model=model).text == text
    assert model.prompts[0].count("</text>") == 1


def test_rewriting_asks_for_the_tone() -> None:
    model = AnsweringModel(lambda _: "Would you kindly come?")
    result = features.rewrite("Come!", tone="professional", model=model)
    assert "so that it is professional and polite" in model.prompts[0]
    assert apply_edits("Come!", result.edits) == result.text == "Would you kindly come?"
    assert not features.rewrite("Come!", model=AnsweringModel(lambda _: ("And so",))).complete


def test_points_of_all_pieces_come_together_once() -> None:
    model = AnsweringModel(
        lambda p: json.dumps({"points": ["the same point", "point " + re.search(r"\d+", content(p))[0]]})
    )
    result = features.key_points(LONG, model=model)
    assert result.points[0] == "the same point" and len(set(result.points)) == len(result.points) > 3
    assert model.generations[0].output.kind == "schema"


def test_too_many_points_are_reduced() -> None:
    def answer(prompt: str) -> str:
        text = content(prompt)
        n = re.search(r"\d+", text)[0]
        if text.startswith("Paragraph"):
            return json.dumps({"points": [f"point {n}.{i}" for i in range(7)]})
        return '{"points":["all in all"]}'

    assert features.key_points(LONG, model=AnsweringModel(answer)).points == ("all in all",)


def test_replies_and_questions() -> None:
    model = AnsweringModel(lambda _: '{"questions":["Do you come?"],"replies":["Yes.","No.","Perhaps."]}')
    result = features.replies("Do you come to my party?", model=model)
    assert (result.replies, result.questions) == (("Yes.", "No.", "Perhaps."), ("Do you come?",))


def test_of_a_long_mail_the_ends_are_read() -> None:
    model = AnsweringModel(lambda _: '{"questions":[],"replies":["Yes.","No.","Perhaps."]}')
    features.replies("FIRST " + LONG * 2 + " LAST", model=model)
    [prompt] = model.prompts
    assert "FIRST" in prompt and "LAST" in prompt and len(prompt) < len(LONG)


def test_notifications_are_sorted_one_by_one() -> None:
    model = AnsweringModel(lambda p: "urgent" if "smoke" in p else "not urgent")
    result = features.prioritize(["sale", "smoke!", "news", "more smoke"], model=model)
    assert result.urgent == (False, True, False, True) and result.order == (1, 3, 0, 2)
    for wrong in ([], "smoke", ["a", " "]):
        with pytest.raises(PomonaError, match="prioritize"):
            features.prioritize(wrong, model=model)  # type: ignore[arg-type]


class Ticket(BaseModel):
    title: str
    urgent: bool


def test_extraction_by_a_class_a_schema_and_the_built_in_one() -> None:
    model = AnsweringModel(lambda _: '{"title":"Save crashes","urgent":true}')
    assert features.extract("It crashes.", schema=Ticket, model=model).value == Ticket(
        title="Save crashes", urgent=True
    )
    assert "with these fields: title, urgent: true or false\n" in model.prompts[0]
    schema = {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]}
    model = AnsweringModel(lambda _: '{"title":"A"}')
    assert features.extract("A", schema=schema, model=model).value == {"title": "A"}
    model = AnsweringModel(lambda _: '{"contacts":[],"events":[]}')
    assert features.extract("A", model=model).value.contacts == []


def test_data_of_several_pieces_is_merged() -> None:
    def answer(prompt: str) -> str:
        n = int(re.search(r"\d+", content(prompt))[0])
        return json.dumps({"n": n or None, "seen": [{"n": min(n, 3)}, {"n": 0}]})

    schema = {
        "type": "object",
        "properties": {"n": {"type": ["integer", "null"]}, "seen": {"type": "array", "maxItems": 9}},
    }
    result = features.extract(LONG, schema=schema, model=AnsweringModel(answer))
    assert result.parts > 1 and result.value["n"] > 0
    assert result.value["seen"] == [{"n": 0}, {"n": 3}]
    with pytest.raises(PomonaError, match="does not fit the schema"):
        schema["properties"]["seen"]["maxItems"] = 1  # type: ignore[index]
        features.extract(LONG, schema=schema, model=AnsweringModel(answer))


def test_merging_keeps_what_says_something() -> None:
    assert plans.merge({"a": "", "b": [1]}, {"a": "x", "b": [1, 2], "c": 3}) == {
        "a": "x",
        "b": [1, 2],
        "c": 3,
    }
    assert plans.merge("x", "y") == "x" and plans.merge(0, 5) == 0 and plans.merge(None, False) is False


def test_an_adapter_that_is_named_is_passed_on() -> None:
    model = AnsweringModel(lambda _: "Anna.")
    assert features.summarize("A mail.", model=model, adapter="mine").origin.adapter == "mine"
    assert model.generations[0].adapter == "mine"


def test_every_feature_has_its_twin() -> None:
    names = [name for name in features.__all__ if name[0].islower() and name != "aio"]
    assert names == ["extract", "key_points", "prioritize", "proofread", "replies", "rewrite", "summarize"]
    for name in names:
        assert getattr(writing, name).__doc__ == getattr(aio, name).__doc__ and getattr(writing, name).__doc__
        assert inspect.iscoroutinefunction(getattr(aio, name))
        assert (
            inspect.signature(getattr(writing, name)).parameters
            == inspect.signature(getattr(aio, name)).parameters
        )
        assert {"model", "adapter", "consent"} <= set(inspect.signature(getattr(aio, name)).parameters)
    for name in features.__all__:
        assert getattr(features, name) is not None


def test_the_twins_give_the_same() -> None:
    def answer(prompt: str) -> str:
        return f"Short {len(prompt)}."

    async def both() -> list[object]:
        one = aio.summarize(LONG, model=AnsweringModel(answer))
        # Within a running loop the plain function asks one after the other.
        return [await one, features.summarize(LONG, model=AnsweringModel(answer))]

    first, second = asyncio.run(both())
    assert first == second == features.summarize(LONG, model=AnsweringModel(answer))


def test_a_failed_request_is_the_features_error() -> None:
    model = AnsweringModel(lambda p: PomonaError("no room") if "number is 9" in p else "Fine.")
    with pytest.raises(PomonaError, match="no room"):
        features.summarize(LONG, model=model)
    with pytest.raises(PomonaError, match="must be a Model"):
        features.summarize("a", model="smollm2")  # type: ignore[arg-type]
