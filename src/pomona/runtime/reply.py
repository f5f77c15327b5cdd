"""What a turn of a session gives back: the content, how it ended, what it cost; and how it can fail."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from pomona.errors import PomonaError

if TYPE_CHECKING:
    from pomona.runtime.transcript import ToolOutput

T_co = TypeVar("T_co", covariant=True)
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Usage:
    """Tokens and seconds of one answer, or of all answers of a turn together (one more per round of tools).

    Prefill ends with an answer's first token; decoding is everything after it. Waiting for a tool, for other
    requests or for a server's network counts in `seconds` only.
    """

    prompt_tokens: int
    new_tokens: int
    prefill_seconds: float
    decode_seconds: float
    first_token_seconds: float  # from the call to the first piece, rendering and tokenising included
    reused_tokens: int = 0  # of the prompt, found in the prefix cache
    seconds: float = 0.0  # from the call to the end
    answers: int = 1

    @property
    def prefill_tps(self) -> float:
        computed = self.prompt_tokens - self.reused_tokens
        return computed / self.prefill_seconds if self.prefill_seconds > 0 else 0.0

    @property
    def decode_tps(self) -> float:
        decoded = self.new_tokens - self.answers
        return decoded / self.decode_seconds if self.decode_seconds > 0 and decoded > 0 else 0.0

    def __add__(self, later: Usage) -> Usage:
        sums = {f.name: getattr(self, f.name) + getattr(later, f.name) for f in fields(self)}
        return Usage(**{**sums, "first_token_seconds": self.first_token_seconds})


@dataclass(frozen=True)
class ToolUse:
    """One call that the model made in a turn, and what came of it."""

    name: str
    arguments: dict[str, object]
    output: str
    failed: bool = False


@dataclass(frozen=True)
class Reply(Generic[T_co]):
    """The end of a turn. `content` is the text, or what the text says under a schema or choices."""

    content: T_co
    text: str
    finish_reason: FinishReason  # "length": max_new_tokens was reached first
    usage: Usage
    tool_calls: tuple[ToolUse, ...] = ()
    adapter: str | None = None
    adapter_version: int | None = None
    dropped_turns: int = 0  # the oldest turns that the model no longer sees (on_overflow="drop_oldest")


class ContextOverflowError(PomonaError):
    """A turn that does not fit the context, found before anything is generated."""

    def __init__(self, message: str, *, prompt_tokens: int, max_new_tokens: int, limit: int) -> None:
        super().__init__(message)
        self.prompt_tokens = prompt_tokens
        self.max_new_tokens = max_new_tokens
        self.limit = limit


class AnswerError(PomonaError):
    """The answer is not what was asked for: cut off, or refused by a validator. `text` is the answer."""

    def __init__(self, message: str, text: str) -> None:
        super().__init__(message)
        self.text = text


class ToolError(PomonaError):
    """A tool raised, and the session was told to stop then. The tool's exception is the `__cause__`."""

    def __init__(self, message: str, output: ToolOutput) -> None:
        super().__init__(message)
        self.output = output
