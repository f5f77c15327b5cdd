"""One turn of a session as a state machine that does no work itself: what to generate, which tools to call,
in which order, and when it is over. The session drives it, on the synchronous path or on asyncio's."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict, TypeVar

from pomona.errors import PomonaError
from pomona.runtime.backend import Generation, Outcome, Prepared
from pomona.runtime.output import Output
from pomona.runtime.reply import ContextOverflowError, Reply, ToolUse, Usage
from pomona.runtime.sampling import Sampling
from pomona.runtime.tools import Tool
from pomona.runtime.transcript import (
    Entry,
    Instructions,
    Prompt,
    Response,
    ToolCalls,
    ToolOutput,
    Transcript,
)

P = TypeVar("P", bound=Prepared)
CHOICES = ("auto", "required", "none")


class TurnOptions(TypedDict, total=False):
    """What a turn may ask for, besides `schema`: another form of the answer, and other settings."""

    regex: str | None
    choices: Sequence[str] | None
    grammar: str | None
    sampling: Sampling | None
    max_new_tokens: int | None
    adapter: str | None
    tool_choice: str


@dataclass(frozen=True)
class Settings:
    """What holds for all turns of a session."""

    tools: tuple[Tool, ...]
    adapter: str | None
    sampling: Sampling
    max_new_tokens: int
    max_tool_rounds: int
    on_tool_error: Literal["raise", "tell"]
    on_overflow: Literal["error", "drop_oldest"]

    def __post_init__(self) -> None:
        _whole("max_new_tokens", self.max_new_tokens, 1)
        _whole("max_tool_rounds", self.max_tool_rounds, 0)
        _one_of("on_tool_error", self.on_tool_error, ("raise", "tell"))
        _one_of("on_overflow", self.on_overflow, ("error", "drop_oldest"))
        if not isinstance(self.sampling, Sampling):
            raise PomonaError("sampling: must be a Sampling, such as Sampling(temperature=0.7, seed=1)")
        if self.adapter is not None and not isinstance(self.adapter, str):
            raise PomonaError("adapter: must be the name of an adapter")


class Turn:
    """`next` tells what to do; `generated` and `called` bring the results; then there is `reply`."""

    def __init__(
        self, settings: Settings, prompt: str, output: Output, *, tool_choice: str, streaming: bool
    ) -> None:
        if not isinstance(prompt, str) or not prompt:
            raise PomonaError("prompt: must be a text that is not empty")
        names = [tool.name for tool in settings.tools]
        _one_of("tool_choice", tool_choice, (*CHOICES, *names))
        if tool_choice not in ("auto", "none"):
            if not settings.tools:
                raise PomonaError(f"tool_choice = {tool_choice}: the session has no tools; give it some")
            if settings.max_tool_rounds == 0:
                raise PomonaError(f"tool_choice = {tool_choice}: max_tool_rounds = 0 forbids it; raise it")
        self.settings = settings
        self.entries: list[Entry] = [Prompt(text=prompt)]
        self.hidden = 0  # turns that the model is not shown
        self._output, self._tool_choice, self._streaming = output, tool_choice, streaming
        self._history = Transcript()
        self._rounds = 0
        self._usage: Usage | None = None
        self._reply: Reply[Any] | None = None
        self._started = time.perf_counter()
        self._pending: ToolCalls | None = None

    def start(self, history: Transcript, hidden: int) -> None:
        self._history, self.hidden = history, hidden
        self._started = time.perf_counter()

    @property
    def reply(self) -> Reply[Any]:
        if self._reply is None:
            raise PomonaError("the answer has not been read to its end; read all pieces first")
        return self._reply

    def next(self, prepare: Callable[[Generation], P]) -> P | ToolCalls | None:
        """A generation to run, a round of calls to make, or None when the turn is over."""
        if self._reply is not None:
            return None
        if self._pending is not None:
            return self._pending
        turns = len(self._history.turns)
        while True:
            prepared = prepare(self._generation())
            if prepared.fits:
                return prepared
            if self.settings.on_overflow == "error" or self.hidden >= turns:
                raise _overflow(prepared, self.settings.on_overflow)
            self.hidden += 1

    def generated(self, outcome: Outcome) -> None:
        self._usage = outcome.usage if self._usage is None else self._usage + outcome.usage
        if outcome.calls:
            if self._rounds >= self.settings.max_tool_rounds or self._tool_choice == "none":
                raise PomonaError(
                    f"the model called {outcome.calls[0].name} where no call was allowed; use another model"
                )
            self._pending = ToolCalls(text=outcome.text, calls=outcome.calls)
            self.entries.append(self._pending)
            return
        content = self._output.read(outcome.text, outcome.finish_reason, self.settings.max_new_tokens)
        self.entries.append(
            Response(text=outcome.text, adapter=outcome.adapter, adapter_version=outcome.adapter_version)
        )
        self._reply = Reply(
            content,
            outcome.text,
            outcome.finish_reason,
            replace(self._usage, seconds=time.perf_counter() - self._started),
            self._uses(),
            outcome.adapter,
            outcome.adapter_version,
            self.hidden,
        )

    def called(self, outputs: Sequence[ToolOutput]) -> None:
        self.entries += outputs
        self._pending = None
        self._rounds += 1

    def _generation(self) -> Generation:
        history = self._history.entries
        calls = sum(len(entry.calls) for entry in (*history, *self.entries) if isinstance(entry, ToolCalls))
        first = tuple(entry for entry in history[:1] if isinstance(entry, Instructions))
        shown = tuple(entry for turn in self._history.turns[self.hidden :] for entry in turn)
        settings = self.settings
        return Generation(
            (*first, *shown, *self.entries),
            self._output,
            settings.tools,
            self._choice(),
            settings.sampling,
            settings.max_new_tokens,
            settings.adapter,
            self._streaming,
            calls,
        )

    def _choice(self) -> str:
        """A choice that forces a call holds for the first round: else the model would never answer."""
        if not self.settings.tools or self._rounds >= self.settings.max_tool_rounds:
            return "none"
        return "auto" if self._rounds and self._tool_choice != "none" else self._tool_choice

    def _uses(self) -> tuple[ToolUse, ...]:
        outputs = {entry.id: entry for entry in self.entries if isinstance(entry, ToolOutput)}
        calls = [call for entry in self.entries if isinstance(entry, ToolCalls) for call in entry.calls]
        return tuple(
            ToolUse(call.name, dict(call.arguments), outputs[call.id].text, outputs[call.id].failed)
            for call in calls
        )


def _overflow(prepared: Prepared, on_overflow: str) -> ContextOverflowError:
    prompt, limit = prepared.prompt_tokens or 0, prepared.limit or 0
    answer = prepared.generation.max_new_tokens
    if on_overflow == "error":
        advice = 'shorten it, lower max_new_tokens, or use on_overflow="drop_oldest"'
    else:
        advice = "even without earlier turns; shorten it, or lower max_new_tokens"
    return ContextOverflowError(
        f"the conversation has {prompt:,} tokens and the answer may have {answer:,}, but the context holds "
        f"{limit:,}: {advice}",
        prompt_tokens=prompt,
        max_new_tokens=answer,
        limit=limit,
    )


def _whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise PomonaError(f"{name} = {str(value)[:40]}: must be a whole number, {least} or more")


def _one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise PomonaError(f"{name} = {str(value)[:40]}: must be one of {', '.join(allowed)}")
