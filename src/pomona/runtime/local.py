"""Sessions on a model of this process: prompts are rendered and counted here, answers come from the engine.

The synchronous path runs the engine in the caller's thread; asyncio goes through the model's scheduler, where
the answers of many sessions share steps.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from pomona.errors import PomonaError
from pomona.runtime.answer import Answer, context_limit
from pomona.runtime.backend import Backend, Generation, Outcome, Prepared
from pomona.runtime.dialects import Splitter
from pomona.runtime.guided import Guide, GuidedTokens
from pomona.runtime.reply import AnswerError, FinishReason, Usage
from pomona.runtime.transcript import ToolCall

if TYPE_CHECKING:
    from pomona.runtime.model import Model


@dataclass(frozen=True)
class LocalPrompt(Prepared):
    """A generation with its tokens and its compiled guide."""

    ids: list[int] = field(default_factory=list)
    guide: Guide | None = None
    guided: GuidedTokens | None = None
    adapter: str | None = None
    started: float = 0.0


class LocalBackend(Backend[LocalPrompt]):
    knows_context = True

    def __init__(self, model: Model) -> None:
        self.model = model

    def prepare(self, generation: Generation) -> LocalPrompt:
        started = time.perf_counter()
        model = self.model
        dialect = model.dialect
        messages, tools = dialect.messages(generation.entries, generation.tools)
        guide = dialect.guide(generation.tools, generation.tool_choice, generation.output)
        ids = model.render(messages, tools=tools)
        return LocalPrompt(
            generation,
            len(ids),
            context_limit(model.engine),
            ids,
            guide,
            None if guide is None else model.guides.start(guide),
            model.adapter_for(generation.adapter),
            started,
        )

    def generate(self, prepared: LocalPrompt) -> Iterator[str | Outcome]:
        model, generation = self.model, prepared.generation
        adapter = None if prepared.adapter is None else model.adapters.acquire(prepared.adapter)
        splitter = self._splitter(generation)
        answer = Answer(
            model.engine,
            model.tokenizer,
            prepared.ids,
            sampling=generation.sampling,
            max_new_tokens=generation.max_new_tokens,
            started=prepared.started,
            adapter=adapter,
            guide=prepared.guided,
            hide_special=not generation.tools,  # a control token may begin a call
        )
        for piece in answer:
            if words := splitter.push(piece):
                yield words
        assert answer.usage is not None
        version = None if adapter is None else adapter.version
        yield from self._end(prepared, splitter, answer.finish_reason, answer.usage, version)

    async def agenerate(self, prepared: LocalPrompt) -> AsyncIterator[str | Outcome]:
        from pomona.runtime.scheduler import Request

        model, generation = self.model, prepared.generation
        splitter = self._splitter(generation)
        decoder = model.tokenizer.stream(skip_special_tokens=not generation.tools)
        ticket = model.scheduler.submit(
            Request(
                prompt_ids=tuple(prepared.ids),
                sampling=generation.sampling,
                max_new_tokens=generation.max_new_tokens,
                stop_ids=frozenset(model.tokenizer.eos_token_ids),
                adapter=prepared.adapter,
                guide=prepared.guide,
                lookup=True,
            )
        )
        first = 0.0
        try:
            async with contextlib.aclosing(cast(Any, aiter(ticket))) as tokens:
                async for token in tokens:
                    first = first or time.perf_counter()
                    if words := splitter.push(decoder.push(token)):
                        yield words
            if words := splitter.push(decoder.flush()):
                yield words
        except BaseException:
            ticket.cancel()
            raise
        done = ticket.result()
        if done.finish_reason not in ("stop", "length"):
            raise PomonaError(f"the answer ended early ({done.finish_reason}); ask again")
        reason: FinishReason = "length" if done.finish_reason == "length" else "stop"
        now = time.perf_counter()
        usage = Usage(
            done.prompt_tokens,
            len(done.token_ids),
            done.prefill_seconds,
            done.decode_seconds,
            (first or now) - prepared.started,
            done.reused_tokens,
            now - prepared.started,
        )
        for piece in self._end(prepared, splitter, reason, usage, done.adapter_version):
            yield piece

    def _splitter(self, generation: Generation) -> Splitter:
        return self.model.dialect.splitter(generation.tools, generation.tool_choice)

    def _end(
        self,
        prepared: LocalPrompt,
        splitter: Splitter,
        reason: FinishReason,
        usage: Usage,
        version: int | None,
    ) -> Iterator[str | Outcome]:
        """The last words, and the outcome, when all tokens are there."""
        generation = prepared.generation
        calls: tuple[ToolCall, ...] = ()
        if splitter.held:
            read = self.model.dialect.read(splitter.held, generation.tools, generation.calls_before)
            if read is not None:
                calls = read
            elif generation.output.kind == "text" or reason == "length":
                raise AnswerError(
                    f"a tool call was cut off after max_new_tokens = {generation.max_new_tokens:,} tokens; "
                    "raise it, or bound the texts and lists in the tools' parameters",
                    splitter.text + splitter.held,
                )
            else:  # JSON that answers, in a dialect whose calls are JSON
                yield splitter.release()
        if words := splitter.finish():
            yield words
        text = splitter.text.rstrip("\n") if calls else splitter.text
        yield Outcome(text, calls, reason, usage, prepared.adapter, version)
