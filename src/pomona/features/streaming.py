"""A feature as a stream of events: what an interface shows while a text is being worked on.

    async for event in stream(plans.proofread(text, model=model)):
        if isinstance(event, Piece):
            print(event.text, end="", flush=True)

The last event is the `Finished`, with what the function of the same name would have returned. Closing the
stream early (`contextlib.aclosing`) cancels what is still being answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pomona.adapters.tasks.task import Request
from pomona.features.guarding import shield_of
from pomona.features.work import TOGETHER, Batch, Done, Plan, answer_of, done_of, turn_of

R = TypeVar("R")


@dataclass(frozen=True)
class Begun:
    """A batch of so many requests begins. A long text takes several batches: what was made of its pieces is
    worked on again."""

    batch: int  # from 0
    requests: int


@dataclass(frozen=True)
class Piece:
    """More of the answer to a request of the batch. Of `key_points` and `replies` it is JSON."""

    request: int  # from 0
    text: str


@dataclass(frozen=True)
class Answered:
    """A request of the batch has its whole answer."""

    request: int
    done: Done


@dataclass(frozen=True)
class Finished(Generic[R]):
    """The result, and what it took. Requests run together, so `tokens_per_second` is all new tokens by the
    time from the first call to the end, prompts and waiting included."""

    result: R
    prompt_tokens: int
    new_tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.new_tokens / self.seconds if self.seconds > 0 else 0.0


Event = Begun | Piece | Answered | Finished[Any]


async def stream(plan: Plan[Any]) -> AsyncIterator[Event]:
    """The events of a plan (`features.plans`), on the running loop. PomonaError as from the function."""
    started = time.perf_counter()
    dones: list[Done] = []
    answers: list[Done] | None = None
    number = 0
    try:
        while True:
            # Cutting and aligning long texts takes a while: not in the loop's thread.
            step = await asyncio.to_thread(_advance, plan, answers)
            if isinstance(step, _End):
                prompt, new = (
                    sum(getattr(d.usage, name) for d in dones) for name in ("prompt_tokens", "new_tokens")
                )
                yield Finished(step.result, prompt, new, time.perf_counter() - started)
                return
            yield Begun(number, len(step.requests))
            found: dict[int, Done] = {}
            events = _batch_events(step)
            try:
                async for event in events:
                    if isinstance(event, Answered):
                        found[event.request] = event.done
                    yield event
            finally:
                await events.aclose()
            answers = [found[i] for i in range(len(step.requests))]
            dones += answers
            number += 1
    finally:
        with contextlib.suppress(ValueError):  # its thread is still at work: then nobody asks it again
            plan.close()


@dataclass(frozen=True)
class _End:
    result: Any


def _advance(plan: Plan[Any], answers: list[Done] | None) -> Batch | _End:
    """The plan's next batch. A StopIteration may not leave a thread's future."""
    try:
        return next(plan) if answers is None else plan.send(answers)
    except StopIteration as end:
        return _End(end.value)


async def _batch_events(batch: Batch) -> Any:
    """Pieces and answers of all requests as they come; the first failure ends the others."""
    gate = asyncio.Semaphore(TOGETHER)
    queue: asyncio.Queue[Piece | Answered | BaseException] = asyncio.Queue()

    async def one(number: int, request: Request) -> None:
        try:
            async with gate:
                queue.put_nowait(Answered(number, await _streamed(batch, number, request, queue)))
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.ensure_future(one(i, request)) for i, request in enumerate(batch.requests)]
    try:
        left = len(tasks)
        while left:
            event = await queue.get()
            if isinstance(event, BaseException):
                raise event
            left -= isinstance(event, Answered)
            yield event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _streamed(
    batch: Batch, number: int, request: Request, queue: asyncio.Queue[Piece | Answered | BaseException]
) -> Done:
    desk = batch.desk
    if desk.fallback is not None or shield_of(desk.model) is not None:
        # Half an answer would have to be taken back if another model takes over, or if it is refused: it
        # comes in one piece.
        done = await answer_of(desk, request)
        queue.put_nowait(Piece(number, done.text))
        return done
    session, prompt, form = turn_of(desk, request)
    async with session.astream(prompt, **form) as pieces:
        async for piece in pieces:
            queue.put_nowait(Piece(number, piece))
        return done_of(desk, pieces.reply)
