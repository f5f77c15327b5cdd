"""A feature as a stream: the events in their order, the result of the function, and an early end."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable
from typing import Any

import pytest
from answering_helpers import AnsweringModel, content

from pomona import features
from pomona.errors import PomonaError
from pomona.features import plans
from pomona.features.router import Policy, Router
from pomona.features.streaming import Answered, Begun, Event, Finished, Piece, stream

LONG = "\n\n".join(f"Paragraph {i} has some words, and then a few more of them. " * 8 for i in range(5))


def events_of(plan: Callable[..., Any], *args: Any, **options: Any) -> list[Event]:
    async def gather() -> list[Event]:
        return [event async for event in stream(plan(*args, **options))]

    return asyncio.run(gather())


def test_the_last_event_has_what_the_function_returns() -> None:
    model = AnsweringModel(lambda prompt: content(prompt).replace("Paragraph", "Section"))
    *before, last = events_of(plans.proofread, LONG, model=model)
    assert isinstance(last, Finished)
    assert last.result == features.proofread(LONG, model=model)
    assert last.result.parts > 1 and len(last.result.edits) == 40
    answered = [event for event in before if isinstance(event, Answered)]
    assert before[0] == Begun(0, last.result.parts) and len(answered) == last.result.parts
    assert (last.prompt_tokens, last.new_tokens) == (10 * last.result.parts, 4 * last.result.parts)
    assert last.tokens_per_second == pytest.approx(last.new_tokens / last.seconds)


def test_pieces_of_every_request_make_its_answer() -> None:
    model = AnsweringModel(content)
    pieces: dict[int, str] = {}
    for event in events_of(plans.rewrite, LONG, model=Streaming(model)):
        if isinstance(event, Piece):
            pieces[event.request] = pieces.get(event.request, "") + event.text
        elif isinstance(event, Answered):
            assert pieces[event.request] == event.done.text
    assert len(pieces) > 1


def test_what_was_made_of_pieces_is_a_batch_of_its_own() -> None:
    model = AnsweringModel(lambda prompt: "Short.")
    begun = [event for event in events_of(plans.summarize, LONG * 4, model=model) if isinstance(event, Begun)]
    assert [event.batch for event in begun] == [0, 1]
    assert begun[0].requests > 1 and begun[1].requests == 1


def test_a_failure_ends_the_stream_with_the_functions_error() -> None:
    model = AnsweringModel(lambda prompt: PomonaError("no more memory"))
    with pytest.raises(PomonaError, match="no more memory"):
        events_of(plans.proofread, LONG, model=model)
    with pytest.raises(PomonaError, match="style"):
        events_of(plans.summarize, "Text.", style="rhyming", model=model)


def test_a_stream_that_is_closed_asks_for_nothing_more() -> None:
    model = AnsweringModel(lambda prompt: "Short.")

    async def first_only() -> Event:
        async with contextlib.aclosing(stream(plans.summarize(LONG * 4, model=model))) as events:  # type: ignore[type-var]
            return await anext(events)

    assert isinstance(asyncio.run(first_only()), Begun)
    assert model.generations == []


def test_where_another_model_may_step_in_an_answer_comes_in_one_piece() -> None:
    device = AnsweringModel(lambda prompt: "from the device")
    server = AnsweringModel(lambda prompt: PomonaError("the server is gone"))
    router = Router(device, server, Policy(server_tasks=("rewrite",)))  # type: ignore[arg-type]
    events = events_of(plans.rewrite, "Send it.", model=router, consent=True)
    assert [event.text for event in events if isinstance(event, Piece)] == ["from the device"]
    last = events[-1]
    assert isinstance(last, Finished) and last.result.origin.place == "device"


class Streaming(AnsweringModel):
    """Gives its answers word by word."""

    def __init__(self, model: AnsweringModel) -> None:
        super().__init__(model.answer)

    def backend(self) -> Any:
        whole = super().backend()

        class Words(type(whole)):  # type: ignore[misc]
            async def agenerate(self, prepared: Any) -> Any:
                for outcome in whole.generate(prepared):
                    for word in re.findall(r"\s*\S+", outcome.text):
                        await asyncio.sleep(0)
                        yield word
                    yield outcome

        return Words(self)
