"""Tasks: one prompt for everybody, with the content as data; the registry; forms of answers."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.adapters.tasks.extract import FACTS, Facts
from pomona.adapters.tasks.registry import get, names
from pomona.adapters.tasks.shape import schema_of_shape, shape
from pomona.adapters.tasks.task import Example, Request, escape, unescape
from pomona.errors import PomonaError
from pomona.runtime.tools import Tool

FRAMED = [name for name in names() if name != "tools"]
PIECES = [
    "<",
    ">",
    "/",
    "\\",
    "text",
    "Text ",
    " ",
    "</text>",
    "<\\text>",
    "{content}",
    "{request}",
    "{style}",
    "\n",
    "a",
]
HOSTILE = st.lists(st.sampled_from(PIECES), min_size=1, max_size=12).map("".join)


def request(name: str, content: str) -> Request:
    return Request(content, schema=FACTS if name == "extract" else None)


def test_there_are_the_eight_tasks() -> None:
    assert names() == (
        "summarize",
        "proofread",
        "rewrite",
        "key_points",
        "reply",
        "prioritize",
        "extract",
        "tools",
    )
    for name in names():
        assert get(name).name == name
        assert get(name).metrics and get(name).instructions and get(name).held_out_note


def test_an_unknown_task_is_refused_by_name() -> None:
    with pytest.raises(PomonaError, match=r"translate: there is none .* summarize, proofread"):
        get("translate")


@settings(deadline=None)
@given(st.text())
def test_escaping_is_undone_exactly(text: str) -> None:
    assert unescape(escape(text)) == text


@settings(deadline=None)
@given(HOSTILE)
def test_content_cannot_write_the_frames_marks(text: str) -> None:
    assert unescape(escape(text)) == text
    assert re.search(r"<\s*/?\s*text", escape(text), re.IGNORECASE) is None


@pytest.mark.parametrize("name", FRAMED)
@settings(deadline=None)
@given(text=HOSTILE.filter(lambda text: text.strip() != ""))
def test_the_frame_is_there_once_and_holds_the_content(name: str, text: str) -> None:
    prompt = get(name).prompt(request(name, text))
    assert len(re.findall(r"<text>", prompt)) == len(re.findall(r"</text>", prompt)) == 1
    inside = prompt.split("<text>\n")[1].split("\n</text>")[0]
    assert unescape(inside) == text
    assert "{content}" not in prompt.replace(inside, "")


def test_places_in_the_content_are_not_filled() -> None:
    prompt = get("summarize").prompt(Request("{style} {kind} {request} {content} {0} %s"))
    assert "{style} {kind} {request} {content} {0} %s" in prompt
    assert prompt.startswith("Summarize this e-mail in one line.\n\n<text>\n")


@pytest.mark.parametrize("name", FRAMED)
@settings(deadline=None)
@given(text=HOSTILE.filter(lambda text: text.strip() != ""))
def test_a_row_can_be_read_back(name: str, text: str) -> None:
    task = get(name)
    answer = {"key_points": '{"points":["one point"]}', "extract": '{"contacts":[],"events":[]}'}.get(
        name, text
    )
    if name == "reply":
        answer = '{"questions":[],"replies":["yes","no","perhaps"]}'
    if name == "prioritize":
        answer = "urgent"
    row = task.row(Example(request(name, text), answer, "here", "MIT"))
    assert set(row) == {"messages", "source", "license", "task"}
    assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
    back = task.example(row)
    assert (back.request.content, back.answer, back.source, back.license) == (text, answer, "here", "MIT")
    assert task.row(back) == row


def test_style_and_kind_come_back_from_a_row() -> None:
    task = get("summarize")
    for style in task.styles:
        for kind in task.kinds:
            row = task.row(Example(Request("Hello.", style, kind), "Hi.", "here", "MIT"))
            assert task.example(row).request == Request("Hello.", style, kind)


def test_foreign_rows_are_refused() -> None:
    task = get("proofread")
    good = task.row(Example(Request("a"), "b", "here", "MIT"))
    for wrong in (
        {},
        {**good, "task": "rewrite"},
        {**good, "messages": good["messages"][:2]},
        {
            **good,
            "messages": [*good["messages"][:1], {"role": "user", "content": "no frame"}, good["messages"][2]],
        },
        {**good, "messages": [*good["messages"][:1], {"role": "user", "content": 3}, good["messages"][2]]},
    ):
        with pytest.raises(PomonaError, match="no row of this task"):
            task.example(wrong)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("summarize", Request("a", style="a haiku"), "style = a haiku: must be one of one line"),
        ("summarize", Request("a", kind="novel"), "kind = novel"),
        ("proofread", Request("a", style="friendly"), "the task has none"),
        ("proofread", Request("  \n "), "there is no text"),
        ("extract", Request("a"), "needs a JSON schema"),
        ("summarize", Request("a", schema={}), "takes no schema"),
        ("tools", Request("a"), "needs tools"),
        ("rewrite", Request("a" * (1 << 20) + "b"), "1,048,576"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(name: str, wrong: Request, message: str) -> None:
    with pytest.raises(PomonaError, match=message):
        get(name).prompt(wrong)


def test_answers_are_read_by_their_form() -> None:
    assert get("proofread").parse(" Fine.\n") == "Fine."
    assert get("proofread").parse("<text>\nFine.\n</text>") == "Fine.", "an echo of the frame"
    assert get("proofread").parse("a <\\/text> b") == "a </text> b"
    assert get("key_points").parse('{"points":["one point"]}').points == ["one point"]
    assert get("prioritize").parse("not urgent") == "not urgent"
    assert get("extract").parse('{"a":1}') == {"a": 1}
    for name, answer in (("key_points", '{"points":[]}'), ("prioritize", "maybe"), ("extract", "{")):
        with pytest.raises(PomonaError, match=f"{name}: the answer is"):
            get(name).parse(answer)


def test_the_prompts_hash_tells_prompts_apart() -> None:
    hashes = {get(name).template_hash for name in names()}
    assert len(hashes) == len(names())
    assert all(re.fullmatch("[0-9a-f]{16}", one) for one in hashes)


def test_tools_are_shown_as_the_session_shows_them() -> None:
    tool = Tool("f", "Does it.", {"type": "object", "properties": {}}, lambda: "")
    task = get("tools")
    messages = task.messages(Request("Do it.", tools=(tool,)))
    assert [message["role"] for message in messages] == ["system", "user"]
    assert '<tools>[{"name": "f"' in messages[0]["content"]
    assert messages[1]["content"] == "Do it."
    # What a backend adds to the entries is the same text.
    from pomona.runtime.dialects import Dialect

    assert Dialect("list").messages(task.entries(Request("Do it.", tools=(tool,))), (tool,))[0] == messages


def test_the_shape_of_a_schema() -> None:
    assert shape(FACTS) == "contacts [name, email, phone, company], events [title, date, time, place]"
    schema = {
        "type": "object",
        "properties": {
            "title": {"type": "string", "description": "a few\nwords"},
            "kind": {"enum": ["bug", "wish"]},
            "count": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "place": {"$ref": "#/$defs/Place"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "when": {"type": "string", "format": "date"},
        },
        "$defs": {"Place": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
    assert shape(schema) == (
        "title: a few words, kind: bug | wish, count: whole number, place {city}, tags [text], "
        "when: text (date)"
    )


def test_a_recursive_schema_has_a_shape_and_a_broken_one_none() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/N"}, "name": {"type": "string"}}}
    assert "..." in shape({"$defs": {"N": node}, "$ref": "#/$defs/N"})
    with pytest.raises(PomonaError, match="not in it"):
        shape({"$ref": "#/$defs/Nowhere"})
    many = {f"field{i}": {"type": "string"} for i in range(2000)}
    with pytest.raises(PomonaError, match="fewer fields"):
        shape({"type": "object", "properties": many})


NAMES = st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True)
LEAVES = st.sampled_from([{"type": "string", "maxLength": 80}, {"type": "integer"}, {"type": "boolean"}])


def _objects(children: st.SearchStrategy[dict]) -> st.SearchStrategy[dict]:
    def of(properties: dict) -> dict:
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }

    lists = children.filter(lambda one: one["type"] == "object").map(
        lambda one: {"type": "array", "items": one, "maxItems": 6}
    )
    return st.dictionaries(NAMES, children | lists, min_size=1, max_size=4).map(of)


@settings(deadline=None)
@given(_objects(st.recursive(LEAVES, _objects, max_leaves=6)))
def test_a_schema_comes_back_from_its_shape(schema: dict) -> None:
    assert schema_of_shape(shape(schema)) == schema


@settings(deadline=None)
@given(st.text(st.sampled_from(list("ab:, []{}|")), max_size=30))
def test_any_text_as_a_shape_is_read_or_refused(text: str) -> None:
    try:
        schema = schema_of_shape(text)
    except ValueError:
        return
    assert json.dumps(schema)


def test_the_built_in_schema_is_that_of_the_class() -> None:
    value = {"contacts": [{"name": "A", "email": "", "phone": "", "company": ""}], "events": []}
    assert Facts.model_validate(value).model_dump() == value
    assert FACTS["additionalProperties"] is False
