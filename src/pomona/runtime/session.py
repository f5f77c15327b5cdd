"""A conversation with a model, in this process or on a server.

    session = model.session(instructions="Answer in one sentence.", tools=[get_weather])
    reply = session.respond("Is it raining in Oslo?")
    print(reply.text, reply.usage.decode_tps, session.transcript)

A turn is recorded when it is complete. One that fails, or whose stream is closed or left before its end,
leaves the transcript as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar, Unpack, cast, overload

from pomona.errors import PomonaError, one_line
from pomona.runtime.backend import Backend, Outcome, Prepared
from pomona.runtime.output import wanted
from pomona.runtime.reply import Reply, ToolError
from pomona.runtime.sampling import Sampling
from pomona.runtime.tools import Tool, as_tools, output_text
from pomona.runtime.transcript import Instructions, ToolCall, ToolCalls, ToolOutput, Transcript
from pomona.runtime.turn import Settings, Turn, TurnOptions

T = TypeVar("T")


class ReplyStream(Generic[T]):
    """The pieces of an answer. When all have been read, `reply` is the whole of it.

    Closing it early (or leaving its `with` block) ends the turn, which is then not recorded.
    """

    def __init__(self, turn: Turn, pieces: Iterator[str]) -> None:
        self._turn, self._pieces = turn, pieces

    @property
    def reply(self) -> Reply[T]:
        return self._turn.reply

    def close(self) -> None:
        cast(Any, self._pieces).close()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncReplyStream(Generic[T]):
    """ReplyStream for `async for` and `async with`."""

    def __init__(self, turn: Turn, pieces: AsyncIterator[str]) -> None:
        self._turn, self._pieces = turn, pieces

    @property
    def reply(self) -> Reply[T]:
        return self._turn.reply

    async def aclose(self) -> None:
        await cast(Any, self._pieces).aclose()

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        return await anext(self._pieces)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class Session:
    """Make it with `model.session(...)`. It answers one turn at a time; use one session per conversation."""

    def __init__(
        self,
        backend: Backend[Any],
        *,
        instructions: str | None,
        tools: Sequence[Callable[..., Any] | Tool],
        adapter: str | None,
        sampling: Sampling | None,
        max_new_tokens: int,
        transcript: Transcript | None,
        max_tool_rounds: int,
        on_tool_error: Literal["raise", "tell"],
        on_overflow: Literal["error", "drop_oldest"],
    ) -> None:
        self._backend = backend
        self._settings = Settings(
            as_tools(tools),
            adapter,
            Sampling() if sampling is None else sampling,
            max_new_tokens,
            max_tool_rounds,
            on_tool_error,
            on_overflow,
        )
        if on_overflow == "drop_oldest" and not backend.knows_context:
            raise PomonaError(
                'on_overflow="drop_oldest": nobody here knows the server\'s context; shorten the transcript'
            )
        if transcript is None:
            transcript = Transcript()
        elif not isinstance(transcript, Transcript):
            raise PomonaError("transcript: must be a Transcript; read a saved one by Transcript.from_json")
        if instructions is not None:
            if transcript.instructions is not None:
                raise PomonaError("instructions: the transcript has its own; leave one of them out")
            if not isinstance(instructions, str):
                raise PomonaError("instructions: must be a text")
            transcript = Transcript(entries=(Instructions(text=instructions), *transcript.entries))
        self._transcript = transcript
        self._hidden = 0
        self._busy = threading.Lock()

    @property
    def transcript(self) -> Transcript:
        """The conversation so far: complete turns only. It does not change; ask again after the next turn."""
        return self._transcript

    @property
    def tools(self) -> tuple[Tool, ...]:
        return self._settings.tools

    @overload
    def respond(self, prompt: str, *, schema: type[T], **options: Unpack[TurnOptions]) -> Reply[T]: ...
    @overload
    def respond(self, prompt: str, *, schema: None = None, **options: Unpack[TurnOptions]) -> Reply[str]: ...
    @overload
    def respond(self, prompt: str, *, schema: Any, **options: Unpack[TurnOptions]) -> Reply[Any]: ...
    def respond(self, prompt: str, *, schema: Any = None, **options: Unpack[TurnOptions]) -> Reply[Any]:
        """The answer to `prompt`.

        One of schema (Pydantic class or other Python type, or JSON schema as a dict), regex, choices and
        grammar may say what form it has; `content` then is the validated value (a text for regex and
        grammar). sampling, max_new_tokens and adapter override the session's. tool_choice: "auto",
        "required", "none", or a tool's name; a forced call is forced once.
        """
        turn = self._turn(prompt, schema, options, streaming=False)
        for _ in self._run(turn):
            pass
        return turn.reply

    @overload
    def stream(self, prompt: str, *, schema: type[T], **options: Unpack[TurnOptions]) -> ReplyStream[T]: ...
    @overload
    def stream(
        self, prompt: str, *, schema: None = None, **options: Unpack[TurnOptions]
    ) -> ReplyStream[str]: ...
    @overload
    def stream(self, prompt: str, *, schema: Any, **options: Unpack[TurnOptions]) -> ReplyStream[Any]: ...
    def stream(self, prompt: str, *, schema: Any = None, **options: Unpack[TurnOptions]) -> ReplyStream[Any]:
        """The same in pieces of text as they come, what the model says before it calls a tool among them."""
        turn = self._turn(prompt, schema, options, streaming=True)
        return ReplyStream(turn, self._run(turn))

    @overload
    async def arespond(self, prompt: str, *, schema: type[T], **options: Unpack[TurnOptions]) -> Reply[T]: ...
    @overload
    async def arespond(
        self, prompt: str, *, schema: None = None, **options: Unpack[TurnOptions]
    ) -> Reply[str]: ...
    @overload
    async def arespond(self, prompt: str, *, schema: Any, **options: Unpack[TurnOptions]) -> Reply[Any]: ...
    async def arespond(
        self, prompt: str, *, schema: Any = None, **options: Unpack[TurnOptions]
    ) -> Reply[Any]:
        """`respond` for asyncio: many sessions at once share the model's steps."""
        turn = self._turn(prompt, schema, options, streaming=False)
        async with contextlib.aclosing(cast(Any, self._arun(turn))) as pieces:
            async for _ in pieces:
                pass
        return turn.reply

    @overload
    def astream(
        self, prompt: str, *, schema: type[T], **options: Unpack[TurnOptions]
    ) -> AsyncReplyStream[T]: ...
    @overload
    def astream(
        self, prompt: str, *, schema: None = None, **options: Unpack[TurnOptions]
    ) -> AsyncReplyStream[str]: ...
    @overload
    def astream(
        self, prompt: str, *, schema: Any, **options: Unpack[TurnOptions]
    ) -> AsyncReplyStream[Any]: ...
    def astream(
        self, prompt: str, *, schema: Any = None, **options: Unpack[TurnOptions]
    ) -> AsyncReplyStream[Any]:
        """`stream` for asyncio."""
        turn = self._turn(prompt, schema, options, streaming=True)
        return AsyncReplyStream(turn, self._arun(turn))

    def _turn(self, prompt: str, schema: Any, options: TurnOptions, *, streaming: bool) -> Turn:
        unknown = ", ".join(sorted(set(options) - set(TurnOptions.__annotations__)))
        if unknown:
            known = ", ".join(("schema", *TurnOptions.__annotations__))
            raise PomonaError(f"{unknown}: is no option of a turn; there are {known}")
        output = wanted(
            schema=schema,
            regex=options.get("regex"),
            choices=options.get("choices"),
            grammar=options.get("grammar"),
        )
        changes: dict[str, Any] = {}
        for name in ("sampling", "max_new_tokens", "adapter"):
            if options.get(name) is not None:
                changes[name] = options.get(name)
        settings = replace(self._settings, **changes)
        tool_choice = options.get("tool_choice", "auto")
        return Turn(settings, prompt, output, tool_choice=tool_choice, streaming=streaming)

    @contextlib.contextmanager
    def _recording(self, turn: Turn) -> Iterator[None]:
        """Keeps the session for this turn, and records the turn if it comes to its end."""
        if not self._busy.acquire(blocking=False):
            raise PomonaError("the session is answering already; wait for its end, or make another session")
        try:
            turn.start(self._transcript, self._hidden)
            yield
            self._transcript = self._transcript.with_entries(turn.entries)
            self._hidden = turn.hidden
        finally:
            self._busy.release()

    def _run(self, turn: Turn) -> Iterator[str]:
        with self._recording(turn):
            while (step := turn.next(self._prepare)) is not None:
                if isinstance(step, ToolCalls):
                    turn.called([self._call(call) for call in step.calls])
                    continue
                with contextlib.closing(cast(Any, self._backend.generate(step))) as pieces:
                    for piece in pieces:
                        if isinstance(piece, Outcome):
                            turn.generated(piece)
                        else:
                            yield piece

    async def _arun(self, turn: Turn) -> AsyncIterator[str]:
        with self._recording(turn):
            while (step := turn.next(self._prepare)) is not None:
                if isinstance(step, ToolCalls):
                    turn.called([await self._acall(call) for call in step.calls])
                    continue
                async with contextlib.aclosing(cast(Any, self._backend.agenerate(step))) as pieces:
                    async for piece in pieces:
                        if isinstance(piece, Outcome):
                            turn.generated(piece)
                        else:
                            yield piece

    def _prepare(self, generation: Any) -> Prepared:
        prepared: Prepared = self._backend.prepare(generation)
        return prepared

    def _call(self, call: ToolCall) -> ToolOutput:
        try:
            tool, arguments = self._found(call)
            if tool.asynchronous and _loop_is_running():
                raise _InLoop
            value = tool.function(**arguments)
            if inspect.isawaitable(value):
                value = asyncio.run(_awaited(value))
            return ToolOutput(id=call.id, name=call.name, text=output_text(value))
        except _InLoop:
            raise PomonaError(
                f"tool {call.name}: is async and an event loop is running; use arespond or astream"
            ) from None
        except Exception as error:
            return self._failed(call, error)

    async def _acall(self, call: ToolCall) -> ToolOutput:
        try:
            tool, arguments = self._found(call)
            if tool.asynchronous:
                value = await tool.function(**arguments)
            else:
                value = await asyncio.to_thread(tool.function, **arguments)
                if inspect.isawaitable(value):
                    value = await value
            return ToolOutput(id=call.id, name=call.name, text=output_text(value))
        except Exception as error:
            return self._failed(call, error)

    def _found(self, call: ToolCall) -> tuple[Tool, dict[str, Any]]:
        for tool in self._settings.tools:
            if tool.name == call.name:
                return tool, tool.arguments(call.arguments)
        raise LookupError(f"there is no tool {call.name}")

    def _failed(self, call: ToolCall, error: Exception) -> ToolOutput:
        text = f"{type(error).__name__}: {error}"
        output = ToolOutput(id=call.id, name=call.name, text=text, failed=True)
        if self._settings.on_tool_error == "tell":
            return output
        raise ToolError(
            f'tool {call.name}: {one_line(text)}; mend it, or use on_tool_error="tell"', output
        ) from error


class _InLoop(Exception):  # noqa: N818  (never leaves this file)
    """An async tool on the synchronous path, where asyncio.run cannot be used."""


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _awaited(value: Any) -> Any:
    return await value
