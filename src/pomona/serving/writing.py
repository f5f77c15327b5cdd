"""POST /v1/write/{task}: the writing features over HTTP, as the Write page uses them.

With `"stream": true` the answer is server-sent events: `progress` (a batch of requests begins, or one has
been answered), `piece` (more of one answer), and at the end `result` or `error`. Without it, the data of
`result` as JSON. Places of edits count code points, as Python does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from pomona.errors import PomonaError
from pomona.features import plans
from pomona.features.streaming import Answered, Begun, Event, Finished, Piece, stream
from pomona.features.work import Plan
from pomona.serving.errors import RESPONSES, ApiError, refused
from pomona.serving.event_stream import EventStream, Write, unless_gone
from pomona.serving.state import ServerState, state_of

MAX_CHARACTERS = 200_000  # of one text; some fifty thousand tokens keep a processor busy for minutes

Task = Literal["summarize", "proofread", "rewrite", "key_points", "replies"]

# What each task may be told besides the text.
OPTIONS: dict[str, tuple[str, ...]] = {
    "summarize": ("style", "kind"),
    "proofread": (),
    "rewrite": ("tone",),
    "key_points": (),
    "replies": (),
}

router = APIRouter(prefix="/v1/write", tags=["writing"])


class WriteRequest(BaseModel):
    """adapter: by default the one of the task's name, if there is one; "base" is none. style and kind are
    options of summarize, tone one of rewrite."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]
    adapter: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    style: Literal["one line", "three sentences"] | None = None
    kind: Literal["e-mail", "thread", "notifications"] | None = None
    tone: Literal["friendly", "professional", "concise"] | None = None
    stream: bool = False

    def plan(self, task: str, model: Any) -> Plan[Any]:
        """The feature's plan. ApiError for an option that is another task's."""
        given = {"style": self.style, "kind": self.kind, "tone": self.tone}
        options = {name: value for name, value in given.items() if value is not None}
        for name in options:
            if name not in OPTIONS[task]:
                owner = next(other for other, names in OPTIONS.items() if name in names)
                raise ApiError(400, f"{name} is an option of {owner}; leave it out", param=name)
        make: Callable[..., Plan[Any]] = getattr(plans, task)
        return make(self.text, model=model, adapter=self.adapter, **options)


class WrittenBy(BaseModel):
    place: Literal["device", "server"]
    model: str
    adapter: str | None
    why: str
    requests: int


class WrittenEdit(BaseModel):
    """text[start:end], which is `original`, becomes `replacement`; in code points of the text that was
    given."""

    start: int
    end: int
    original: str
    replacement: str


class WritingUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int


class WritingTimings(BaseModel):
    """From the request to the result; new tokens of all answers by that time."""

    seconds: float
    tokens_per_second: float


class WritingResult(BaseModel):
    """Which of the optional fields there are depends on the task; docs/features.md says what they mean."""

    object: Literal["pomona.writing"] = "pomona.writing"
    task: Task
    origin: WrittenBy
    usage: WritingUsage
    timings: WritingTimings
    text: str | None = None
    edits: list[WrittenEdit] | None = None
    points: list[str] | None = None
    replies: list[str] | None = None
    questions: list[str] | None = None
    parts: int | None = None
    kept: int | None = None
    complete: bool | None = None

    def to_json(self) -> dict[str, Any]:
        value = self.model_dump(exclude_none=True)
        return {**value, "origin": self.origin.model_dump()}  # an adapter of none is worth telling


@router.post(
    "/{task}",
    summary="Summarise, correct, rewrite or answer a text",
    responses={200: {"model": WritingResult, "content": {"text/event-stream": {}}}, **RESPONSES},
)
async def write(task: Task, body: WriteRequest, request: Request) -> Response:
    """Does one task of writing on a text of any length, whole or as a stream of server-sent events."""
    state = state_of(request)
    state.check_open()
    if not body.text.strip():
        raise ApiError(400, "text is empty; give one", param="text")
    try:
        state.model.adapter_for(body.adapter)
    except PomonaError as error:
        raise refused(error, param="adapter") from error
    work = _Work(state, task, body)
    # What is refused is refused before anything is sent: as an error, not as a stream that holds one.
    await work.begin()
    if body.stream:
        return EventStream(work.write, abandon=lambda: None, stall_seconds=state.settings.stall_seconds)
    return JSONResponse((await unless_gone(request.receive, work.result())).to_json())


class _Work:
    """One request's events, read once: by `write` or by `result`."""

    def __init__(self, state: ServerState, task: Task, body: WriteRequest) -> None:
        self._task = task
        self._seconds = state.settings.deadline_seconds
        self._events = stream(body.plan(task, state.model))
        self._first: Event

    async def begin(self) -> None:
        self._first = await anext(self._events)

    async def result(self) -> WritingResult:
        event = self._first
        async with self._limited():
            async for event in self._events:  # noqa: B007
                pass
        return written(self._task, cast(Finished[Any], event))

    async def write(self, write: Write) -> None:
        done = requests = 0
        try:
            async with self._limited():
                event: Event | None = self._first
                while event is not None:
                    if isinstance(event, Begun):
                        done, requests = 0, event.requests
                        told = {"batch": event.batch, "done": 0, "requests": requests}
                        await write(server_sent("progress", told))
                    elif isinstance(event, Piece):
                        await write(server_sent("piece", {"request": event.request, "text": event.text}))
                    elif isinstance(event, Answered):
                        done += 1
                        await write(server_sent("progress", {"done": done, "requests": requests}))
                    else:
                        await write(server_sent("result", written(self._task, event).to_json()))
                    event = await anext(self._events, None)
        except ApiError as error:
            await write(server_sent("error", error.body))

    @contextlib.asynccontextmanager
    async def _limited(self) -> Any:
        """Ends the work with its reader, and at the server's deadline; errors of the runtime as ApiError."""
        try:
            async with contextlib.aclosing(cast(Any, self._events)), asyncio.timeout(self._seconds):
                yield
        except TimeoutError:
            raise ApiError(
                504,
                f"the text took longer than {self._seconds:g} s, the server's deadline; give a shorter one",
                type="server_error",
                code="deadline_exceeded",
            ) from None
        except PomonaError as error:
            raise refused(error) from error


def server_sent(event: str, data: Any) -> bytes:
    """One event. JSON has no line breaks, so that its data is one line."""
    return f"event: {event}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def written(task: Task, finished: Finished[Any]) -> WritingResult:
    """What a feature gave back, as it is sent."""
    return WritingResult.model_validate(
        {
            "task": task,
            **asdict(finished.result),
            "usage": {"prompt_tokens": finished.prompt_tokens, "completion_tokens": finished.new_tokens},
            "timings": {
                "seconds": round(finished.seconds, 4),
                "tokens_per_second": round(finished.tokens_per_second, 2),
            },
        }
    )
