"""A model whose answers are written down beforehand: for tests of what a session does with them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

from pomona.runtime.backend import Backend, Generation, LanguageModel, Outcome, Prepared
from pomona.runtime.reply import FinishReason, Usage
from pomona.runtime.transcript import ToolCall

Calls = list[tuple[str, dict[str, Any]]]


class ScriptedModel(LanguageModel):
    """Gives one entry of the script per generation: a text, a list of calls, a text cut off by the length
    (a tuple of one), or an exception that comes after the first piece. Tokens are words; `limit` fit."""

    def __init__(self, *script: str | Calls | tuple[str] | BaseException, limit: int | None = None) -> None:
        self.script = list(script)
        self.limit = limit
        self.generations: list[Generation] = []
        self.open_answers = 0

    def backend(self) -> Backend[Any]:
        return _Scripted(self)

    def close(self) -> None:
        pass


class _Scripted(Backend[Prepared]):
    def __init__(self, model: ScriptedModel) -> None:
        self.model = model
        self.knows_context = model.limit is not None

    def prepare(self, generation: Generation) -> Prepared:
        if self.model.limit is None:
            return Prepared(generation)
        words = sum(len(str(getattr(entry, "text", "")).split()) for entry in generation.entries)
        return Prepared(generation, words, self.model.limit)

    def generate(self, prepared: Prepared) -> Iterator[str | Outcome]:
        self.model.open_answers += 1
        try:
            yield from self._answer(prepared)
        finally:
            self.model.open_answers -= 1

    async def agenerate(self, prepared: Prepared) -> AsyncIterator[str | Outcome]:
        self.model.open_answers += 1
        try:
            for piece in self._answer(prepared):
                yield piece
        finally:
            self.model.open_answers -= 1

    def _answer(self, prepared: Prepared) -> Iterator[str | Outcome]:
        generation = prepared.generation
        self.model.generations.append(generation)
        entry = self.model.script.pop(0)
        usage = Usage(10, 4, 0.5, 0.25, 0.5, 2, 0.75)
        if isinstance(entry, BaseException):
            yield "well, "
            raise entry
        if isinstance(entry, list):
            calls = tuple(
                ToolCall(id=f"call{generation.calls_before + n:05d}", name=name, arguments=arguments)
                for n, (name, arguments) in enumerate(entry, 1)
            )
            yield Outcome("", calls, "stop", usage)
            return
        reason: FinishReason = "length" if isinstance(entry, tuple) else "stop"
        text = entry[0] if isinstance(entry, tuple) else entry
        yield from re.findall(r"\S+\s*", text)
        yield Outcome(text, (), reason, usage, generation.adapter, 3 if generation.adapter else None)
