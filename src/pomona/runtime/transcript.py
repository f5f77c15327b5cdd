"""The record of a conversation: immutable entries, to JSON and back.

    saved = session.transcript.to_json()
    session = model.session(transcript=Transcript.from_json(saved))

A transcript may begin with instructions; turns follow. A turn is a prompt, then any number of rounds of tool
calls with one output per call, in order, then a response.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from pomona.errors import PomonaError

VERSION = 1
MAX_JSON_CHARACTERS = 1 << 26


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Instructions(_Frozen):
    """What the model is told before the first turn: the system message."""

    kind: Literal["instructions"] = "instructions"
    text: str


class Prompt(_Frozen):
    """What the user said."""

    kind: Literal["prompt"] = "prompt"
    text: str


class Response(_Frozen):
    """What the model answered."""

    kind: Literal["response"] = "response"
    text: str
    adapter: str | None = None
    adapter_version: int | None = None


class ToolCall(_Frozen):
    """One call that the model asks for. `id` ties the output to it."""

    id: str
    name: str
    arguments: dict[str, JsonValue]


class ToolCalls(_Frozen):
    """A round of calls, with what the model said before them."""

    kind: Literal["tool_calls"] = "tool_calls"
    text: str = ""
    calls: Annotated[tuple[ToolCall, ...], Field(min_length=1, strict=False)]


class ToolOutput(_Frozen):
    """What a tool gave. `failed`: it raised, and `text` is its error."""

    kind: Literal["tool_output"] = "tool_output"
    id: str
    name: str
    text: str
    failed: bool = False


Entry = Instructions | Prompt | Response | ToolCalls | ToolOutput


class Transcript(_Frozen):
    """An immutable conversation. PomonaError when the order of the entries makes no conversation."""

    version: Literal[1] = 1
    entries: Annotated[tuple[Annotated[Entry, Field(discriminator="kind")], ...], Field(strict=False)] = ()

    def model_post_init(self, context: Any, /) -> None:
        _check_order(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def instructions(self) -> str | None:
        first = self.entries[0] if self.entries else None
        return first.text if isinstance(first, Instructions) else None

    @property
    def turns(self) -> tuple[tuple[Entry, ...], ...]:
        """The entries of each turn, without the instructions."""
        found: list[list[Entry]] = []
        for entry in self.entries:
            if isinstance(entry, Prompt):
                found.append([entry])
            elif not isinstance(entry, Instructions):
                found[-1].append(entry)
        return tuple(tuple(turn) for turn in found)

    def with_entries(self, more: Sequence[Entry]) -> Transcript:
        """A transcript with further entries at the end."""
        return Transcript(entries=(*self.entries, *more))

    def to_json(self, *, indent: int | None = None) -> str:
        return self.model_dump_json(indent=indent)

    @classmethod
    def from_json(cls, text: str | bytes) -> Transcript:
        """PomonaError for anything that to_json did not write, or that was changed into nonsense."""
        if len(text) > MAX_JSON_CHARACTERS:
            raise PomonaError("transcript: larger than 64 MiB; save a shorter conversation")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise PomonaError(f"transcript: {first_problem(error)}; use what to_json wrote") from error

    def __str__(self) -> str:
        return "\n".join(_lines(self.entries))


def first_problem(error: ValidationError) -> str:
    """The first thing that Pydantic found wrong, with its place."""
    problem = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{place}: {problem['msg']}{more}" if place else f"{problem['msg']}{more}"


def _check_order(entries: Sequence[Entry]) -> None:
    waiting: list[ToolCall] = []  # for their outputs
    before: Entry | None = None
    for number, entry in enumerate(entries):
        after = type(before)
        if isinstance(entry, Instructions):
            fits = number == 0
        elif isinstance(entry, Prompt):
            fits = before is None or after in (Instructions, Response)
        elif isinstance(entry, ToolOutput):
            fits = bool(waiting) and (waiting[0].id, waiting[0].name) == (entry.id, entry.name)
            waiting = waiting[1:]
        else:
            fits = after in (Prompt, ToolOutput) and not waiting
            if isinstance(entry, ToolCalls):
                waiting = list(entry.calls)
        if not fits:
            raise PomonaError(
                f"transcript: entry {number} ({entry.kind}) does not follow from what is before it; "
                "use what a session recorded"
            )
        before = entry
    if waiting or not (before is None or isinstance(before, Instructions | Response)):
        raise PomonaError("transcript: the last turn has no response; leave that turn out")


def _lines(entries: Sequence[Entry]) -> Iterator[str]:
    for entry in entries:
        if isinstance(entry, ToolCalls):
            if entry.text:
                yield f"tool_calls: {entry.text}"
            for call in entry.calls:
                yield f"call {call.name}: {call.arguments}"
        elif isinstance(entry, ToolOutput):
            yield f"{'error of' if entry.failed else 'output of'} {entry.name}: {entry.text}"
        else:
            yield f"{entry.kind}: {entry.text}"
