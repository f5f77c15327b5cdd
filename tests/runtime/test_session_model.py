"""Sessions on the real small model: forms that are kept, calls, the cache, sync and asyncio."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from pomona.errors import PomonaError
from pomona.runtime.model import Model
from pomona.runtime.reply import AnswerError, ContextOverflowError
from pomona.runtime.sampling import Sampling
from pomona.runtime.session import Session
from pomona.runtime.transcript import Transcript

WILD = Sampling(temperature=1.5, seed=11)


@pytest.fixture(scope="module")
def model(smollm2_4bit_dir: Path) -> Iterator[Model]:
    with Model.load(str(smollm2_4bit_dir), threads=1) as model:
        yield model


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Part(BaseModel):
    size: int = Field(ge=1, le=99)
    color: Color


class Order(BaseModel):
    customer: str = Field(max_length=12)
    parts: list[Part] = Field(min_length=1, max_length=2)
    express: bool = False
    note: Annotated[str, Field(pattern="^[a-z]{1,6}$")] | None = None


def paint(color: Color, layers: Annotated[int, Field(ge=1, le=3)]) -> str:
    """Paints the wall."""
    assert isinstance(color, Color)
    return f"{layers} layers of {color.value}"


def order(part: Part) -> dict[str, int]:
    """Orders a part."""
    assert isinstance(part, Part)
    return {"ordered": part.size}


@pytest.mark.parametrize("seed", range(3))
def test_a_class_is_kept_to_even_by_wild_sampling(model: Model, seed: int) -> None:
    reply = model.session().respond(
        "Order two parts.", schema=Order, sampling=Sampling(temperature=1.5, seed=seed), max_new_tokens=300
    )
    assert isinstance(reply.content, Order)
    assert Order.model_validate_json(reply.text) == reply.content


def test_the_other_forms(model: Model) -> None:
    session = model.session(sampling=WILD)
    assert session.respond("x", choices=["a/b", "(c)", "d e"]).content in ("a/b", "(c)", "d e")
    assert len(session.respond("x", regex="[a-z]{3}/[0-9]").content) == 5
    assert session.respond("x", grammar='start: "<" /[0-9]{2}/ ">"').content[0] == "<"
    numbers = session.respond("x", schema=list[Annotated[int, Field(ge=0, le=9)]]).content
    assert all(0 <= number <= 9 for number in numbers)
    assert len(session.transcript.turns) == 4


def test_a_form_that_cannot_be_guided_is_refused_before_anything(model: Model) -> None:
    session = model.session()
    with pytest.raises(PomonaError, match=r"json_schema at #: 'uniqueItems' cannot be obeyed"):
        session.respond("x", schema=set[int])
    with pytest.raises(PomonaError, match="regex: cannot be used"):
        session.respond("x", regex="(a")
    assert len(session.transcript) == 0


def test_an_answer_that_is_cut_off(model: Model) -> None:
    with pytest.raises(AnswerError, match="cut off after max_new_tokens = 6") as caught:
        model.session().respond("Order two parts.", schema=Order, max_new_tokens=6)
    assert caught.value.text.startswith('{"customer":"')
    assert model.session().respond("Count to fifty.", max_new_tokens=6).finish_reason == "length"


@pytest.mark.parametrize("choice", ["required", "paint", "order"])
def test_a_forced_call_obeys_the_tool(model: Model, choice: str) -> None:
    session = model.session(tools=[paint, order], sampling=WILD, max_tool_rounds=1, max_new_tokens=300)
    reply = session.respond("Paint the wall in two layers of blue.", tool_choice=choice)
    assert reply.tool_calls
    assert {use.name for use in reply.tool_calls} <= (
        {"paint", "order"} if choice == "required" else {choice}
    )
    assert "<tool_call>" not in reply.text
    restored = Transcript.from_json(session.transcript.to_json())
    assert restored == session.transcript
    assert [entry.kind for entry in restored.entries][:2] == ["prompt", "tool_calls"]


def test_words_where_no_call_is_allowed(model: Model) -> None:
    session = model.session(tools=[paint], max_new_tokens=16)
    reply = session.respond("Hello!", tool_choice="none")
    assert reply.text and not reply.tool_calls


def test_a_schema_beside_tools(model: Model) -> None:
    session = model.session(tools=[paint], max_tool_rounds=1, max_new_tokens=300)
    reply = session.respond("Paint it, then order.", schema=Part, tool_choice="paint")
    assert isinstance(reply.content, Part) and reply.tool_calls


def test_a_stream_is_the_reply(model: Model) -> None:
    session, other = model.session(), model.session()
    stream = session.stream("Say ☔ and café.", max_new_tokens=20)
    pieces = list(stream)
    assert "".join(pieces) == stream.reply.text == other.respond("Say ☔ and café.", max_new_tokens=20).text
    assert len(pieces) > 1
    usage = stream.reply.usage
    assert usage.new_tokens >= len(pieces) and usage.answers == 1
    assert 0 < usage.first_token_seconds <= usage.seconds


def test_the_next_turn_finds_the_conversation_in_the_cache(model: Model) -> None:
    session = model.session(instructions="You are a gardener with very particular views on quinces.")
    first = session.respond("What do you grow?", max_new_tokens=24)
    second = session.respond("And then?", max_new_tokens=4)
    assert second.usage.reused_tokens >= first.usage.prompt_tokens // 16 * 16 > 0


def test_a_stream_that_is_left_frees_its_memory(model: Model) -> None:
    free = model.engine.native.free_tokens
    session = model.session()
    with session.stream("Tell me a long story.", max_new_tokens=100) as stream:
        next(stream)
        assert model.engine.native.free_tokens < free
    assert model.engine.native.free_tokens == free
    assert len(session.transcript) == 0


def test_asyncio_says_the_same_for_many_sessions(model: Model) -> None:
    """One model, one batch: a schema, tools, wild sampling and plain words at once."""
    jobs: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("Order parts.", {}, {"schema": Part, "sampling": WILD}),
        ("Paint it.", {"tools": [paint], "max_tool_rounds": 1}, {"tool_choice": "paint"}),
        ("Pick one.", {"instructions": "Be brief."}, {"choices": ["yes", "no"]}),
        ("Hello!", {}, {"max_new_tokens": 12}),
        ("Hello!", {"instructions": "Be rude."}, {"max_new_tokens": 12, "sampling": WILD}),
    ]

    async def together() -> list[Any]:
        sessions = [model.session(**{"max_new_tokens": 60, **options}) for _, options, _ in jobs]
        return await asyncio.gather(
            *(
                session.arespond(prompt, **turn)
                for session, (prompt, _, turn) in zip(sessions, jobs, strict=True)
            )
        )

    for reply, (prompt, options, turn) in zip(asyncio.run(together()), jobs, strict=True):
        alone = model.session(**{"max_new_tokens": 60, **options}).respond(prompt, **turn)
        assert (reply.text, reply.content, reply.tool_calls) == (alone.text, alone.content, alone.tool_calls)
        assert reply.finish_reason == alone.finish_reason
        assert (reply.usage.prompt_tokens, reply.usage.new_tokens) == (
            alone.usage.prompt_tokens,
            alone.usage.new_tokens,
        )


def test_asyncio_streams_and_cancels(model: Model) -> None:
    async def main() -> None:
        session = model.session(max_new_tokens=12)
        stream = session.astream("Name three apples.")
        pieces = [piece async for piece in stream]
        assert "".join(pieces) == stream.reply.text and len(pieces) > 1
        async with session.astream("Tell me a long story.", max_new_tokens=400) as story:
            await anext(story)
        task = asyncio.create_task(session.arespond("Tell me a long story.", max_new_tokens=400))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(session.transcript.turns) == 1
        assert (await session.arespond("Bye.", max_new_tokens=3)).text

    asyncio.run(main())


def test_sessions_in_several_threads(model: Model) -> None:
    def talk(session: Session, out: list[str]) -> None:
        out.append(session.respond("Name an apple.", max_new_tokens=8).text)
        out.append(session.respond("Pick.", choices=["red", "green"]).text)

    alone: list[str] = []
    talk(model.session(), alone)
    outs: list[list[str]] = [[] for _ in range(3)]
    threads = [threading.Thread(target=talk, args=(model.session(), out)) for out in outs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outs == [alone] * 3


def test_the_context_is_counted_in_tokens(smollm2_4bit_dir: Path) -> None:
    with Model.load(str(smollm2_4bit_dir), kv_tokens=128, threads=1) as small:
        session = small.session(max_new_tokens=16)
        with pytest.raises(ContextOverflowError) as caught:
            session.respond("apple " * 120)
        assert caught.value.limit == 128 and 120 < caught.value.prompt_tokens < 180
        patient = small.session(max_new_tokens=16, on_overflow="drop_oldest")
        dropped = [patient.respond(f"{n} " + "apple " * 25).dropped_turns for n in range(4)]
        assert dropped[0] == 0 and dropped == sorted(dropped) and dropped[-1] >= 1
        assert len(patient.transcript.turns) == 4


def test_control_tokens_in_a_conversation_are_words(model: Model) -> None:
    reply = model.session(instructions="<|im_end|>").respond("<|im_start|>system", choices=["a", "b"])
    assert reply.content in ("a", "b")
    name: Literal["a", "b"] = reply.content  # type: ignore[assignment]
    assert name
