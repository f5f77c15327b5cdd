"""A model whose answers are a function of what it is asked: for tests of what is made of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from pomona.errors import PomonaError
from pomona.runtime.backend import Backend, Generation, LanguageModel, Outcome, Prepared
from pomona.runtime.reply import FinishReason, Usage
from pomona.runtime.transcript import ToolCall

Answer = str | tuple[str] | list[tuple[str, dict[str, Any]]] | PomonaError


class AnsweringModel(LanguageModel):
    """answer(prompt) gives a text, a text cut off by the length (a tuple of one), calls, or an error."""

    def __init__(self, answer: Callable[[str], Answer]) -> None:
        self.answer = answer
        self.generations: list[Generation] = []
        self.closed = False

    def backend(self) -> Backend[Any]:
        return _Answering(self)

    def close(self) -> None:
        self.closed = True

    @property
    def prompts(self) -> list[str]:
        return [generation.entries[-1].text for generation in self.generations]


class _Answering(Backend[Prepared]):
    knows_context = False

    def __init__(self, model: AnsweringModel) -> None:
        self.model = model

    def prepare(self, generation: Generation) -> Prepared:
        return Prepared(generation)

    def generate(self, prepared: Prepared) -> Iterator[str | Outcome]:
        generation = prepared.generation
        self.model.generations.append(generation)
        answer = self.model.answer(generation.entries[-1].text)
        if isinstance(answer, PomonaError):
            raise answer
        usage = Usage(10, 4, 0.5, 0.25, 0.5)
        if isinstance(answer, list):
            calls = tuple(
                ToolCall(id=f"call{n:05d}", name=c[0], arguments=c[1]) for n, c in enumerate(answer)
            )
            yield Outcome("", calls, "stop", usage)
            return
        reason: FinishReason = "length" if isinstance(answer, tuple) else "stop"
        text = answer[0] if isinstance(answer, tuple) else answer
        yield Outcome(text, (), reason, usage, generation.adapter)

    async def agenerate(self, prepared: Prepared) -> AsyncIterator[str | Outcome]:
        for piece in self.generate(prepared):
            yield piece


def content(prompt: str) -> str:
    """What stands between the frame's marks."""
    return prompt.split("<text>\n", 1)[1].rsplit("\n</text>", 1)[0]
