"""What a server answered: a whole completion or the chunks of a stream, read strictly into one Outcome."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pomona.errors import PomonaError
from pomona.runtime.backend import Generation, Outcome
from pomona.runtime.reply import AnswerError, FinishReason, Usage
from pomona.runtime.transcript import ToolCall, first_problem

CHOICE = "choice"  # OpenAI's schemas are objects: a choice is this key's value


class _Received(BaseModel):
    """Strict about what we read; servers may add fields of their own."""

    model_config = ConfigDict(strict=True, extra="ignore")


class _Details(_Received):
    cached_tokens: int | None = None


class _Usage(_Received):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: _Details | None = None


class _Function(_Received):
    name: str | None = None
    arguments: str | None = None


class _Call(_Received):
    index: int | None = None
    id: str | None = None
    type: Literal["function"] | None = None
    function: _Function | None = None


class _Message(_Received):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(_Received):
    index: int | None = None
    message: _Message | None = None
    delta: _Message | None = None
    finish_reason: str | None = None


class _Completion(_Received):
    choices: list[_Choice] = Field(max_length=1)
    usage: _Usage | None = None


class RemoteAnswer:
    """One answer, from a whole completion or from the chunks of a stream."""

    def __init__(self, generation: Generation, validator: Any, server: str) -> None:
        """validator: jsonschema's, for a schema that was given as a dict. server: for messages."""
        self._generation, self._validator, self._server = generation, validator, server
        self._started = time.perf_counter()
        self._first = 0.0
        self._text: list[str] = []
        self._calls: list[_Call] = []
        self._refusal = ""
        self._finish: str | None = None
        self._usage: _Usage | None = None

    def whole(self, body: Any) -> None:
        completion = self._read(body)
        if not completion.choices or completion.choices[0].message is None:
            raise self._error("sent a completion without a message; look at the server")
        choice = completion.choices[0]
        assert choice.message is not None
        self._message(choice.message)
        for number, call in enumerate(choice.message.tool_calls or ()):
            self._calls.append(call.model_copy(update={"index": number}))
        self._finish, self._usage = choice.finish_reason, completion.usage

    def chunk(self, body: Any) -> str:
        """The words in a chunk that can be shown now."""
        completion = self._read(body)
        self._usage = completion.usage or self._usage
        if not completion.choices:
            return ""
        choice = completion.choices[0]
        self._finish = choice.finish_reason or self._finish
        if choice.delta is None:
            return ""
        piece = self._message(choice.delta)
        for call in choice.delta.tool_calls or ():
            self._call_chunk(call)
        # A choice comes as an object around it, which is taken off at the end.
        return "" if self._generation.output.kind == "choices" else piece

    def end(self) -> Iterator[str | Outcome]:
        if self._refusal:
            raise self._error(f"refused to answer ({self._refusal}); change the prompt")
        reason = self._reason()
        calls = tuple(
            self._call(call, number)
            for number, call in enumerate(self._calls, self._generation.calls_before + 1)
        )
        text = "".join(self._text)
        if not calls and self._generation.output.kind == "choices":
            text = self._choice(text, reason)
            if self._generation.streaming:
                yield text
        elif not calls and self._validator is not None:
            self._validate(text, reason)
        yield Outcome(text, calls, reason, self._used(), self._generation.adapter)

    def _read(self, body: Any) -> _Completion:
        try:
            return _Completion.model_validate(body)
        except ValidationError as error:
            raise self._error(
                f"sent no chat completion ({first_problem(error)}); look at the server"
            ) from error

    def _message(self, message: _Message) -> str:
        self._refusal += message.refusal or ""
        piece = message.content or ""
        if piece:
            self._text.append(piece)
        if piece or message.tool_calls:
            self._first = self._first or time.perf_counter()
        return piece

    def _call_chunk(self, call: _Call) -> None:
        """A call comes in parts: first its name, then its arguments bit by bit."""
        index = len(self._calls) if call.index is None else call.index
        if index == len(self._calls):
            self._calls.append(call)
            return
        if not 0 <= index < len(self._calls):
            raise self._error(f"sent part of a tool call with number {index} out of turn; look at the server")
        before = self._calls[index]
        old, new = before.function or _Function(), call.function or _Function()
        function = _Function(
            name=old.name or new.name, arguments=(old.arguments or "") + (new.arguments or "")
        )
        self._calls[index] = before.model_copy(update={"id": before.id or call.id, "function": function})

    def _call(self, call: _Call, number: int) -> ToolCall:
        function = call.function or _Function()
        if not function.name:
            raise self._error("sent a tool call without a name; look at the server")
        try:
            arguments = json.loads(function.arguments or "{}")
            if not isinstance(arguments, dict):
                raise ValueError("no object")
        except (ValueError, RecursionError) as error:
            cut = "; max_new_tokens may have cut it off" if self._finish == "length" else ""
            raise AnswerError(
                f"{self._server}: the model called {function.name} with arguments that are no JSON "
                f"object{cut}; ask again",
                function.arguments or "",
            ) from error
        return ToolCall(id=call.id or f"call{number:05d}", name=function.name, arguments=arguments)

    def _reason(self) -> FinishReason:
        if self._finish in ("stop", "tool_calls"):
            return "stop"
        if self._finish == "length":
            return "length"
        if self._finish == "content_filter":
            raise self._error("withheld the answer (content_filter); change the prompt")
        raise self._error(
            f"ended with finish_reason {self._finish}, which is unknown here; look at the server"
        )

    def _choice(self, text: str, reason: FinishReason) -> str:
        try:
            chosen = json.loads(text)[CHOICE]
            if chosen in self._generation.output.options:
                return str(chosen)
        except (ValueError, RecursionError, KeyError, TypeError):
            pass
        cut = " (max_new_tokens may have cut it off)" if reason == "length" else ""
        raise AnswerError(
            f"{self._server}: the answer is none of the choices{cut}; the server may not know "
            "response_format",
            text,
        )

    def _validate(self, text: str, reason: FinishReason) -> None:
        """A dict's schema is checked here; a Python type checks itself."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return  # the session says that it is no JSON
        problem = next(iter(self._validator.iter_errors(value)), None)
        if problem is not None:
            raise AnswerError(
                f"{self._server}: the answer does not obey the schema ({problem.message[:200]}); "
                "the server may not know response_format",
                text,
            )

    def _used(self) -> Usage:
        """Times as they are seen from here, with the network's. Counts are 0 where the server tells none."""
        now = time.perf_counter()
        first = self._first if self._generation.streaming and self._first else now
        used = self._usage or _Usage(prompt_tokens=0, completion_tokens=0)
        cached = used.prompt_tokens_details.cached_tokens if used.prompt_tokens_details else None
        return Usage(
            used.prompt_tokens,
            used.completion_tokens,
            first - self._started,
            now - first,
            first - self._started,
            cached or 0,
            now - self._started,
        )

    def _error(self, what: str) -> PomonaError:
        return PomonaError(f"{self._server}: {what}")
