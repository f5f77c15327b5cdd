"""Answers to many conversations at once, from a model in this process or any OpenAI-compatible server.

    answer_all(model, [messages, ...], adapter="recovery", max_new_tokens=96, on_answer=keep)

A local model's scheduler batches them. Greedy: a reply depends on its conversation alone, so that a run that
was interrupted goes on as if nothing had been.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from pomona.errors import PomonaError
from pomona.runtime.backend import Generation, LanguageModel, Outcome
from pomona.runtime.model import Model
from pomona.runtime.output import TEXT
from pomona.runtime.sampling import Sampling
from pomona.runtime.transcript import Entry, Instructions, Prompt, Response

LOCAL_TOGETHER = 64
REMOTE_TOGETHER = 8
OnAnswer = Callable[[int, str], None]


def answer_all(
    model: LanguageModel,
    conversations: Sequence[Sequence[Mapping[str, str]]],
    on_answer: OnAnswer,
    *,
    adapter: str | None = None,
    max_new_tokens: int = 96,
) -> None:
    """on_answer(number, text) is called as each answer ends; "" for a conversation that does not fit.

    PomonaError: an adapter that the model does not have, a server that fails. Not for a running event loop.
    """
    if isinstance(model, Model):
        model.adapter_for(adapter)  # refuses a name that the model does not know
    asyncio.run(_all(model, conversations, on_answer, adapter, max_new_tokens))


async def _all(
    model: LanguageModel,
    conversations: Sequence[Sequence[Mapping[str, str]]],
    on_answer: OnAnswer,
    adapter: str | None,
    max_new_tokens: int,
) -> None:
    backend = model.backend()
    gate = asyncio.Semaphore(LOCAL_TOGETHER if isinstance(model, Model) else REMOTE_TOGETHER)

    async def one(number: int, messages: Sequence[Mapping[str, str]]) -> None:
        async with gate:
            prepared = backend.prepare(
                Generation(entries(messages), TEXT, (), "none", Sampling(), max_new_tokens, adapter, False)
            )
            text = ""
            if prepared.fits:
                async for piece in backend.agenerate(prepared):
                    if isinstance(piece, Outcome):
                        text = piece.text
            on_answer(number, text)

    await asyncio.gather(*(one(number, messages) for number, messages in enumerate(conversations)))


def entries(messages: Sequence[Mapping[str, str]]) -> tuple[Entry, ...]:
    """A conversation of {"role", "content"} messages as a transcript's entries."""
    found: list[Entry] = []
    for message in messages:
        text = message["content"]
        match message["role"]:
            case "system":
                found.append(Instructions(text=text))
            case "user":
                found.append(Prompt(text=text))
            case "assistant":
                found.append(Response(text=text))
            case other:
                raise PomonaError(f"role {other!r}: is none of system, user, assistant")
    return tuple(found)
