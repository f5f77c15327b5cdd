"""What a session needs of whatever answers it: a model in this process, or a server.

A session asks a backend to `prepare` a Generation, which refuses what cannot be done and counts tokens, and
then to generate it. The pieces of text come as they are made; the last thing that comes is the Outcome.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar

from pomona.runtime.reply import FinishReason, Usage
from pomona.runtime.sampling import Sampling

if TYPE_CHECKING:
    from pomona.runtime.output import Output
    from pomona.runtime.session import Session
    from pomona.runtime.tools import Tool
    from pomona.runtime.transcript import Entry, ToolCall, Transcript


@dataclass(frozen=True)
class Generation:
    """One answer to be made. `tool_choice`: "none", "auto", "required", or the name of the tool to call."""

    entries: tuple[Entry, ...]
    output: Output
    tools: tuple[Tool, ...]
    tool_choice: str
    sampling: Sampling
    max_new_tokens: int
    adapter: str | None
    streaming: bool  # somebody reads the pieces as they come
    calls_before: int = 0  # calls made in this conversation so far: where the numbering of ids goes on


@dataclass(frozen=True)
class Outcome:
    """How a generation ended: with text, or with calls (and the text before them)."""

    text: str
    calls: tuple[ToolCall, ...]
    finish_reason: FinishReason
    usage: Usage
    adapter: str | None = None
    adapter_version: int | None = None


@dataclass(frozen=True)
class Prepared:
    """A generation that can be run. The counts are None where nobody knows them."""

    generation: Generation
    prompt_tokens: int | None = None
    limit: int | None = None

    @property
    def fits(self) -> bool:
        if self.prompt_tokens is None or self.limit is None:
            return True
        return self.prompt_tokens + self.generation.max_new_tokens <= self.limit


P = TypeVar("P", bound=Prepared)


class Backend(ABC, Generic[P]):
    """Answers one generation at a time per session; several sessions may share one backend."""

    knows_context: bool  # prepare() counts tokens

    @abstractmethod
    def prepare(self, generation: Generation) -> P:
        """PomonaError for what cannot be done, before anything is generated."""

    @abstractmethod
    def generate(self, prepared: P) -> Iterator[str | Outcome]:
        """Pieces of text, then one Outcome. Closing the iterator early frees what it holds."""

    @abstractmethod
    def agenerate(self, prepared: P) -> AsyncIterator[str | Outcome]:
        """The same for asyncio."""


class LanguageModel(ABC):
    """What Model and RemoteModel have in common: code that takes this works with either.

    shield: judges what the features bring to this model and get from it (pomona.safety.screening.Shield).
    """

    shield: Any = None

    @abstractmethod
    def backend(self) -> Backend[Any]:
        """What answers this model's sessions."""

    @abstractmethod
    def close(self) -> None:
        """Gives back what the model holds. Closing twice does nothing."""

    def session(
        self,
        *,
        instructions: str | None = None,
        tools: Sequence[Callable[..., Any] | Tool] = (),
        adapter: str | None = None,
        sampling: Sampling | None = None,
        max_new_tokens: int = 512,
        transcript: Transcript | None = None,
        max_tool_rounds: int = 4,
        on_tool_error: Literal["raise", "tell"] = "raise",
        on_overflow: Literal["error", "drop_oldest"] = "error",
    ) -> Session:
        """A conversation with this model.

        instructions: the system message. tools: functions or Tool objects that the model may call. adapter,
        sampling (greedy by default) and max_new_tokens are defaults that a turn can override. transcript: an
        earlier conversation to go on from. max_tool_rounds: after so many rounds of calls in one turn the
        model must answer. on_tool_error: a tool that raises ends the turn, or its error is told to the model.
        on_overflow: a turn that does not fit the context is refused, or the oldest turns are no longer shown
        to the model (the transcript keeps them).
        """
        from pomona.runtime.session import Session

        return Session(
            self.backend(),
            instructions=instructions,
            tools=tools,
            adapter=adapter,
            sampling=sampling,
            max_new_tokens=max_new_tokens,
            transcript=transcript,
            max_tool_rounds=max_tool_rounds,
            on_tool_error=on_tool_error,
            on_overflow=on_overflow,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
