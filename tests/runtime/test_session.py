"""A session's turns: what is recorded, what is sent, tools, forms of the answer, and what can go wrong.

The model is scripted; test_session_model.py has the real one."""

from __future__ import annotations

import asyncio
import gc
import threading
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field, field_validator
from scripted_model import ScriptedModel

from pomona.errors import PomonaError
from pomona.runtime.reply import AnswerError, ContextOverflowError, ToolError, ToolUse
from pomona.runtime.sampling import Sampling
from pomona.runtime.transcript import Instructions, Prompt, Response, ToolCalls, ToolOutput, Transcript

calls: list[Any] = []


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


def add(a: int, b: int = 1) -> int:
    """Adds two numbers."""
    calls.append((a, b))
    return a + b


async def look_up(word: str) -> dict[str, str]:
    """Looks a word up."""
    await asyncio.sleep(0)
    calls.append(word)
    return {"word": word}


def fails(text: str) -> str:
    """Never works."""
    raise ValueError(f"no {text}\n today")


# --- turns --------------------------------------------------------------------------------------------------


def test_a_turn_gives_a_reply_and_is_recorded() -> None:
    model = ScriptedModel("Hello you.", "Well.")
    session = model.session(instructions="Be kind.")
    reply = session.respond("Hi")
    assert (reply.content, reply.text, reply.finish_reason, reply.tool_calls) == (
        "Hello you.",
        "Hello you.",
        "stop",
        (),
    )
    assert (reply.usage.prompt_tokens, reply.usage.new_tokens, reply.usage.reused_tokens) == (10, 4, 2)
    assert reply.usage.decode_tps == pytest.approx(3 / 0.25)
    assert reply.usage.prefill_tps == pytest.approx(8 / 0.5)
    session.respond("How are you?")
    assert session.transcript.entries == (
        Instructions(text="Be kind."),
        Prompt(text="Hi"),
        Response(text="Hello you."),
        Prompt(text="How are you?"),
        Response(text="Well."),
    )
    assert model.generations[1].entries == session.transcript.entries[:-1]


def test_a_stream_gives_pieces_and_then_the_reply() -> None:
    session = ScriptedModel("one two three").session()
    stream = session.stream("count")
    with pytest.raises(PomonaError, match="read all pieces first"):
        _ = stream.reply
    assert list(stream) == ["one ", "two ", "three"]
    assert stream.reply.text == "one two three"
    assert list(stream) == []
    assert len(session.transcript) == 2


def test_what_a_turn_overrides_holds_for_that_turn_alone() -> None:
    model = ScriptedModel("a", "b")
    session = model.session(sampling=Sampling(seed=1), max_new_tokens=9, adapter="one")
    reply = session.respond("x", sampling=Sampling(seed=2), max_new_tokens=3, adapter="two")
    assert (reply.adapter, reply.adapter_version) == ("two", 3)
    session.respond("y")
    first, second = model.generations
    assert (first.sampling.seed, first.max_new_tokens, first.adapter) == (2, 3, "two")
    assert (second.sampling.seed, second.max_new_tokens, second.adapter) == (1, 9, "one")
    assert [entry.adapter for entry in session.transcript.entries[1::2]] == ["two", "one"]  # type: ignore[union-attr]


def test_a_saved_session_goes_on() -> None:
    first = ScriptedModel("a", [("add", {"a": 1})], "2").session(instructions="i", tools=[add])
    first.respond("x")
    first.respond("y")
    saved = first.transcript.to_json()
    model = ScriptedModel("b")
    second = model.session(transcript=Transcript.from_json(saved), tools=[add])
    second.respond("z")
    assert model.generations[0].entries == (*first.transcript.entries, Prompt(text="z"))
    assert model.generations[0].calls_before == 1


def test_many_sessions_share_one_model() -> None:
    model = ScriptedModel(*[f"answer {n}" for n in range(20)])
    sessions = [model.session(instructions=str(n)) for n in range(4)]
    for _ in range(5):
        for session in sessions:
            session.respond("next")
    assert [session.transcript.instructions for session in sessions] == ["0", "1", "2", "3"]
    assert [len(session.transcript.turns) for session in sessions] == [5] * 4


# --- turns that do not end ----------------------------------------------------------------------------------


def test_a_turn_that_fails_is_not_recorded() -> None:
    session = ScriptedModel("a", RuntimeError("broken"), "b").session()
    session.respond("x")
    before = session.transcript
    with pytest.raises(RuntimeError, match="broken"):
        session.respond("y")
    assert session.transcript == before
    assert session.respond("z").text == "b"


def test_a_stream_that_is_closed_is_not_recorded() -> None:
    model = ScriptedModel("one two", "three", "four five six")
    session = model.session()
    with session.stream("x") as stream:
        assert next(stream) == "one "
        assert model.open_answers == 1
    assert model.open_answers == 0
    with pytest.raises(PomonaError, match="read all pieces first"):
        _ = stream.reply
    assert len(session.transcript) == 0
    assert session.respond("y").text == "three"


def test_a_stream_that_is_forgotten_frees_the_session() -> None:
    model = ScriptedModel("one two", "three")
    session = model.session()
    stream = session.stream("x")
    next(stream)
    del stream
    gc.collect()
    assert model.open_answers == 0
    assert session.respond("y").text == "three"
    assert len(session.transcript.turns) == 1


def test_a_session_answers_one_turn_at_a_time() -> None:
    session = ScriptedModel("one two", "three").session()
    stream = session.stream("x")
    next(stream)
    with pytest.raises(PomonaError, match="answering already"):
        session.respond("y")
    list(stream)
    assert session.respond("y").text == "three"


def test_a_stream_may_be_finished_in_another_thread() -> None:
    session = ScriptedModel("one two", "three").session()
    stream = session.stream("x")
    next(stream)
    thread = threading.Thread(target=lambda: list(stream))
    thread.start()
    thread.join()
    assert session.respond("y").text == "three"


# --- forms of the answer ------------------------------------------------------------------------------------


class Ticket(BaseModel):
    title: str
    urgent: bool = False


@dataclass
class Point:
    x: int
    y: int


def test_a_class_gives_a_validated_instance() -> None:
    session = ScriptedModel('{"title":"leak","urgent":true}').session()
    reply = session.respond("x", schema=Ticket)
    assert reply.content == Ticket(title="leak", urgent=True)
    assert reply.content.urgent
    assert session.transcript.entries[-1] == Response(text='{"title":"leak","urgent":true}')


@pytest.mark.parametrize(
    ("schema", "text", "content"),
    [
        (Point, '{"x":1,"y":2}', Point(1, 2)),
        (list[int], "[1,2]", [1, 2]),
        (Literal["a", "b"], '"b"', "b"),
        ({"type": "object"}, '{"k":[1]}', {"k": [1]}),
        ({"type": "null"}, "null", None),
    ],
)
def test_other_types_and_dicts_are_schemas_too(schema: Any, text: str, content: Any) -> None:
    model = ScriptedModel(text)
    assert model.session().respond("x", schema=schema).content == content
    guide = model.generations[0].output.guide
    assert guide is not None and guide.kind == "json_schema"


def test_a_class_leaves_no_room_for_other_keys() -> None:
    class Outer(BaseModel):
        inner: Ticket

    class Open(BaseModel, extra="allow"):
        x: int

    model = ScriptedModel('{"inner":{"title":"t"}}', '{"x":1}')
    session = model.session()
    session.respond("x", schema=Outer)
    session.respond("x", schema=Open)
    outer, free = (generation.output.schema for generation in model.generations)
    assert outer is not None and free is not None
    assert outer["additionalProperties"] is False
    assert outer["$defs"]["Ticket"]["additionalProperties"] is False
    assert free["additionalProperties"] is True


def test_regex_choices_and_grammar_give_the_text() -> None:
    model = ScriptedModel("12", "red", "<a>")
    session = model.session()
    assert session.respond("x", regex="[0-9]+").content == "12"
    assert session.respond("x", choices=["red", "green"]).content == "red"
    assert session.respond("x", grammar='start: "<a>"').content == "<a>"
    assert [generation.output.kind for generation in model.generations] == ["regex", "choices", "grammar"]


def test_an_answer_that_was_cut_off_is_no_content() -> None:
    session = ScriptedModel(('{"title":"le',), ("1",), ("free text that",)).session(max_new_tokens=5)
    with pytest.raises(AnswerError, match="cut off after max_new_tokens = 5") as caught:
        session.respond("x", schema=Ticket)
    assert caught.value.text == '{"title":"le'
    with pytest.raises(AnswerError, match="no complete regex"):
        session.respond("x", regex="[0-9]{3}")
    assert len(session.transcript) == 0
    assert session.respond("x").finish_reason == "length"


def test_a_validator_may_refuse_an_answer() -> None:
    class Even(BaseModel):
        n: int

        @field_validator("n")
        @classmethod
        def check(cls, n: int) -> int:
            if n % 2:
                raise ValueError("is odd")
            return n

    session = ScriptedModel('{"n":3}', '{"n":4}').session()
    with pytest.raises(AnswerError, match=r"n: Value error, is odd"):
        session.respond("x", schema=Even)
    assert session.respond("x", schema=Even).content.n == 4
    assert len(session.transcript.turns) == 1


# --- tools --------------------------------------------------------------------------------------------------


def test_tools_are_called_and_their_outputs_told() -> None:
    model = ScriptedModel(
        [("add", {"a": 2, "b": 3}), ("add", {"a": 4})], [("look_up", {"word": "fig"})], "Ten."
    )
    session = model.session(tools=[add, look_up])
    reply = session.respond("x")
    assert calls == [(2, 3), (4, 1), "fig"]
    assert reply.text == "Ten."
    assert reply.tool_calls == (
        ToolUse("add", {"a": 2, "b": 3}, "5"),
        ToolUse("add", {"a": 4}, "5"),
        ToolUse("look_up", {"word": "fig"}, '{"word":"fig"}'),
    )
    assert [entry.kind for entry in session.transcript.entries] == [
        "prompt",
        "tool_calls",
        "tool_output",
        "tool_output",
        "tool_calls",
        "tool_output",
        "response",
    ]
    assert model.generations[2].entries == session.transcript.entries[:-1]
    assert (reply.usage.answers, reply.usage.prompt_tokens, reply.usage.new_tokens) == (3, 30, 12)
    assert reply.usage.first_token_seconds == 0.5


def test_arguments_are_validated_before_the_call() -> None:
    session = ScriptedModel([("add", {"a": "two"})]).session(tools=[add])
    with pytest.raises(ToolError, match=r"tool add: ValueError: a: Input should be a valid integer"):
        session.respond("x")
    assert calls == []


def test_a_tool_that_raises_ends_the_turn() -> None:
    session = ScriptedModel([("fails", {"text": "luck"})], "b").session(tools=[fails])
    with pytest.raises(ToolError, match=r"tool fails: ValueError: no luck\\n today; mend it") as caught:
        session.respond("x")
    assert isinstance(caught.value.__cause__, ValueError)
    assert caught.value.output.failed
    assert len(session.transcript) == 0
    assert session.respond("y").text == "b"


def test_or_its_error_is_told_to_the_model() -> None:
    model = ScriptedModel([("fails", {"text": "luck"}), ("nobody", {})], "Sorry.")
    reply = model.session(tools=[fails], on_tool_error="tell").respond("x")
    outputs = [entry for entry in model.generations[1].entries if isinstance(entry, ToolOutput)]
    assert [(entry.text, entry.failed) for entry in outputs] == [
        ("ValueError: no luck\n today", True),
        ("LookupError: there is no tool nobody", True),
    ]
    assert [use.failed for use in reply.tool_calls] == [True, True]


def test_what_is_no_json_is_no_output() -> None:
    def broken() -> object:
        """Gives something strange."""
        return object()

    session = ScriptedModel([("broken", {})]).session(tools=[broken])
    with pytest.raises(ToolError, match="returned a object, which is no text and no JSON"):
        session.respond("x")


def test_rounds_of_calls_are_bounded() -> None:
    one = [("add", {"a": 1})]
    model = ScriptedModel(one, one, "Enough.")
    session = model.session(tools=[add], max_tool_rounds=2)
    assert session.respond("x").text == "Enough."
    assert [generation.tool_choice for generation in model.generations] == ["auto", "auto", "none"]
    stubborn = ScriptedModel(one, one).session(tools=[add], max_tool_rounds=1)
    with pytest.raises(PomonaError, match="called add where no call was allowed"):
        stubborn.respond("x")


@pytest.mark.parametrize(("choice", "then"), [("required", "auto"), ("add", "auto"), ("none", "none")])
def test_a_call_is_forced_once(choice: str, then: str) -> None:
    script = ["a"] if choice == "none" else [[("add", {"a": 1})], "a"]
    model = ScriptedModel(*script)  # type: ignore[arg-type]
    model.session(tools=[add]).respond("x", tool_choice=choice)
    expected = [choice] if choice == "none" else [choice, then]
    assert [generation.tool_choice for generation in model.generations] == expected


def test_an_async_tool_works_on_the_synchronous_path_outside_a_loop() -> None:
    script = ([("look_up", {"word": "fig"})], "a")
    assert (
        ScriptedModel(*script).session(tools=[look_up]).respond("x").tool_calls[0].output == '{"word":"fig"}'
    )

    async def inside() -> None:
        with pytest.raises(PomonaError, match="use arespond or astream"):
            ScriptedModel(*script).session(tools=[look_up], on_tool_error="tell").respond("x")

    asyncio.run(inside())


# --- asyncio ------------------------------------------------------------------------------------------------


def test_the_same_for_asyncio() -> None:
    async def main() -> None:
        script = ([("add", {"a": 1}), ("look_up", {"word": "fig"})], "one two", '{"title":"t"}')
        session = ScriptedModel(*script).session(tools=[add, look_up])
        stream = session.astream("x")
        assert [piece async for piece in stream] == ["one ", "two"]
        assert [use.output for use in stream.reply.tool_calls] == ["2", '{"word":"fig"}']
        reply = await session.arespond("y", schema=Ticket)
        assert reply.content == Ticket(title="t")
        assert len(session.transcript.turns) == 2

    asyncio.run(main())


def test_a_blocking_tool_does_not_block_the_loop() -> None:
    release = threading.Event()

    def wait() -> str:
        """Waits."""
        assert release.wait(20)
        return "done"

    async def main() -> None:
        session = ScriptedModel([("wait", {})], "a").session(tools=[wait])
        task = asyncio.create_task(session.arespond("x"))
        await asyncio.sleep(0)
        release.set()  # reached only when the tool does not hold the loop
        assert (await task).tool_calls[0].output == "done"

    asyncio.run(main())


def test_a_cancelled_turn_is_not_recorded() -> None:
    async def main() -> None:
        async def forever() -> str:
            """Takes for ever."""
            started.set()
            await asyncio.Event().wait()
            return ""

        started = asyncio.Event()
        model = ScriptedModel([("forever", {})], "one two", "b")
        session = model.session(tools=[forever], on_tool_error="tell")
        task = asyncio.create_task(session.arespond("x"))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with session.astream("y") as stream:
            assert await anext(stream) == "one "
        assert model.open_answers == 0
        assert len(session.transcript) == 0
        assert (await session.arespond("z")).text == "b"

    asyncio.run(main())


# --- the context --------------------------------------------------------------------------------------------


def test_a_turn_that_does_not_fit_is_refused_before_anything_is_generated() -> None:
    model = ScriptedModel("a b c", limit=20)
    session = model.session(instructions="i i", max_new_tokens=10)
    with pytest.raises(ContextOverflowError) as caught:
        session.respond("x " * 9)
    error = caught.value
    assert (error.prompt_tokens, error.max_new_tokens, error.limit) == (11, 10, 20)
    assert "the conversation has 11 tokens and the answer may have 10, but the context holds 20" in str(error)
    assert model.generations == []
    assert session.respond("x " * 8).text == "a b c"


def test_the_oldest_turns_may_be_dropped() -> None:
    model = ScriptedModel(*["a a a"] * 5, limit=20)
    session = model.session(instructions="i", max_new_tokens=5, on_overflow="drop_oldest")
    dropped = [session.respond(f"{n} x").dropped_turns for n in range(5)]
    assert dropped == [0, 0, 0, 1, 2]
    entries = model.generations[4].entries
    assert [entry.text for entry in entries] == ["i", "2 x", "a a a", "3 x", "a a a", "4 x"]  # type: ignore[union-attr]
    assert len(session.transcript.turns) == 5, "the transcript keeps everything"
    with pytest.raises(ContextOverflowError, match="even without earlier turns"):
        session.respond("x " * 30)
    assert len(session.transcript.turns) == 5


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens = 0: must be a whole number, 1 or more"),
        ({"max_new_tokens": True}, "max_new_tokens = True"),
        ({"max_tool_rounds": -1}, "max_tool_rounds = -1"),
        ({"on_tool_error": "ignore"}, "on_tool_error = ignore: must be one of raise, tell"),
        ({"on_overflow": "x"}, "on_overflow = x: must be one of error, drop_oldest"),
        ({"on_overflow": "drop_oldest"}, "nobody here knows the server's context"),
        ({"sampling": 0.7}, "must be a Sampling"),
        ({"adapter": 3}, "adapter: must be the name"),
        ({"tools": add}, "must be a list"),
        ({"tools": [3]}, "neither a function nor a Tool"),
        ({"tools": [add, add]}, "two are called add"),
        ({"instructions": 3}, "instructions: must be a text"),
        ({"transcript": "[]"}, "Transcript.from_json"),
    ],
)
def test_a_session_that_makes_no_sense_is_refused(options: Any, message: str) -> None:
    with pytest.raises(PomonaError, match=message):
        ScriptedModel().session(**options)


def test_two_sets_of_instructions_are_refused() -> None:
    old = Transcript(entries=(Instructions(text="old"),))
    with pytest.raises(PomonaError, match="the transcript has its own"):
        ScriptedModel().session(instructions="new", transcript=old)
    assert ScriptedModel().session(transcript=old).transcript == old


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "prompt: must be a text that is not empty"),
        (3, {}, "prompt: must be a text"),
        ("x", {"schema": Ticket, "regex": "a"}, "schema and regex: an answer has one form"),
        ("x", {"schema": object()}, "has no JSON schema"),
        ("x", {"choices": "abc"}, "choices: must be a list"),
        ("x", {"choices": []}, "choices: must be a list"),
        ("x", {"regex": ""}, "regex: must be a text"),
        ("x", {"grammar": 3}, "grammar: must be a text"),
        ("x", {"temperature": 0.7}, "temperature: is no option of a turn; there are schema, regex"),
        ("x", {"tool_choice": "mul"}, "tool_choice = mul: must be one of auto, required, none"),
        ("x", {"tool_choice": "required"}, "the session has no tools"),
        ("x", {"max_new_tokens": -1}, "max_new_tokens = -1"),
    ],
)
def test_a_turn_that_makes_no_sense_is_refused(prompt: Any, options: Any, message: str) -> None:
    session = ScriptedModel().session()
    for method in (session.respond, session.stream, session.astream):
        with pytest.raises(PomonaError, match=message):
            method(prompt, **options)
    assert len(session.transcript) == 0


def test_a_forced_call_needs_a_round() -> None:
    with pytest.raises(PomonaError, match="max_tool_rounds = 0 forbids it"):
        ScriptedModel().session(tools=[add], max_tool_rounds=0).respond("x", tool_choice="add")


def test_bounds_of_a_schema_reach_the_guide() -> None:
    class Bounded(BaseModel):
        n: int = Field(ge=1, le=5)
        words: list[str] = Field(max_length=2)

    model = ScriptedModel('{"n":1,"words":[]}')
    model.session().respond("x", schema=Bounded)
    schema = model.generations[0].output.schema
    assert schema is not None
    assert schema["properties"]["n"]["maximum"] == 5
    assert schema["properties"]["words"]["maxItems"] == 2


def test_the_transcript_prints_as_a_conversation() -> None:
    session = ScriptedModel([("add", {"a": 1})], "2").session(instructions="i", tools=[add])
    session.respond("x")
    assert (
        str(session.transcript)
        == "instructions: i\nprompt: x\ncall add: {'a': 1}\noutput of add: 2\nresponse: 2"
    )
    assert any(isinstance(entry, ToolCalls) for entry in session.transcript.entries)
