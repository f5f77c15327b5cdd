"""A reply as chunks: what chat completions and completions have in common."""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, TypeVar

from starlette.requests import Request

from pomona.safety.guardrail_policy import Refusal
from pomona.serving.answering import Choice, Ending, Job, cancel_all, read_to_end
from pomona.serving.event_stream import DONE, EventStream, Write, unless_gone
from pomona.serving.guarding import guard_fields
from pomona.serving.reply import adapter_fields, head_fields, note_endings, timings, usage
from pomona.serving.state import ServerState

T = TypeVar("T")
COMPACT = (",", ":")


async def whole(request: Request, job: Job, choices: Sequence[Choice]) -> list[Ending]:
    """The endings of all choices, for a reply in one piece. When the client goes, the work ends."""
    try:
        endings = await unless_gone(request.receive, all_of(read_to_end(choice) for choice in choices))
    finally:
        cancel_all(choices)
    note_endings(request, job, endings)
    return endings


class ChunkStream(ABC):
    """The chunks of one reply. What they share is written once; a token costs one string and one write."""

    prefix: str  # of the reply's id
    object_name: str

    def __init__(self, request: Request, state: ServerState, job: Job, choices: list[Choice]) -> None:
        self.state, self.job, self.choices = state, job, choices
        self._request = request
        head = head_fields(state, job, self.prefix, self.object_name)
        self._head = "data: " + json.dumps(head, separators=COMPACT)[:-1]
        self._end = ',"usage":null}\n\n' if job.include_usage else "}\n\n"

    def response(self) -> EventStream:
        return EventStream(
            self.write,
            abandon=lambda: cancel_all(self.choices),
            stall_seconds=self.state.settings.stall_seconds,
        )

    @abstractmethod
    def words(self, choice: Choice, text: str, first: bool) -> str:
        """JSON of the choice with more of its text."""

    @abstractmethod
    def ending(self, choice: Choice, ending: Ending) -> Iterable[str]:
        """JSON of the choice at its end; the last one holds the finish_reason."""

    async def write(self, write: Write) -> None:
        endings = await all_of(self._one(choice, write) for choice in self.choices)
        note_endings(self._request, self.job, endings)
        last = DONE
        if self.job.include_usage:
            text = json.dumps(usage(self.job, endings), separators=COMPACT)
            last = f'{self._head},"choices":[],"usage":{text}}}\n\n'.encode() + DONE
        await write(last)

    async def _one(self, choice: Choice, write: Write) -> Ending:
        more, first = choice.ticket.more, True
        while new := await more(choice.read):
            if text := await choice.show(new):
                await write(self._chunk(self.words(choice, text, first)))
                first = False
            if choice.over:
                choice.ticket.cancel()
                break
        await choice.ticket.ended()
        ending = await choice.finish()
        if ending.words or first:
            await write(self._chunk(self.words(choice, ending.words, first)))
        *others, last = self.ending(choice, ending)
        for one in others:
            await write(self._chunk(one))
        await write(self._last(last, ending, [choice.refused] if choice.refused else []))
        return ending

    def _chunk(self, choice: str) -> bytes:
        return f'{self._head},"choices":[{choice}]{self._end}'.encode()

    def _last(self, choice: str, ending: Ending, refusals: list[Refusal]) -> bytes:
        """The chunk with a choice's finish_reason also tells timings and adapter."""
        extra: dict[str, Any] = {"timings": timings([ending]), **adapter_fields(self.job, [ending])}
        extra |= guard_fields(refusals)
        more = json.dumps(extra, separators=COMPACT)[1:-1]
        return f'{self._head},"choices":[{choice}],{more}{self._end}'.encode()


async def all_of(works: Iterable[Awaitable[T]]) -> list[T]:
    """The results in order. The first error ends all."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
