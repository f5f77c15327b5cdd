"""A reply as server-sent events, written as they come, and what happens when its reader goes or stalls."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pomona.serving.errors import ApiError, internal, log

DONE = b"data: [DONE]\n\n"
T = TypeVar("T")
Write = Callable[[bytes], Awaitable[None]]


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


class EventStream(Response):
    """`events` writes the reply; it is cancelled when the client has gone, or takes nothing for
    `stall_seconds`. `abandon` is called whenever it did not come to its end."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: Callable[[Write], Awaitable[None]],
        *,
        abandon: Callable[[], None],
        stall_seconds: float,
    ) -> None:
        super().__init__(None, 200, {"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._abandon, self._stall_seconds = events, abandon, stall_seconds
        self._writing_since: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()

        async def write(data: bytes) -> None:
            self._writing_since = loop.time()
            await send({"type": "http.response.body", "body": data, "more_body": True})
            self._writing_since = None

        finished = False
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            writer = asyncio.ensure_future(self._written(write))
            gone = asyncio.ensure_future(client_gone(receive))
            watch = asyncio.ensure_future(self._stalled(loop))
            try:
                await asyncio.wait({writer, gone, watch}, return_when=asyncio.FIRST_COMPLETED)
                finished = writer.done() and not writer.cancelled() and writer.exception() is None
            finally:
                for task in (writer, gone, watch):
                    task.cancel()
                await asyncio.wait({writer, gone, watch})
        finally:
            if not finished:
                self._abandon()
        if finished:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        elif not writer.cancelled() and (error := writer.exception()) is not None:
            raise error

    async def _written(self, write: Write) -> None:
        try:
            await self._events(write)
        except ApiError as error:
            self._abandon()
            await write(event(error.body))
        except Exception as error:
            self._abandon()
            log.error("a stream failed", exc_info=error)
            await write(event(internal().body))

    async def _stalled(self, loop: asyncio.AbstractEventLoop) -> None:
        """Returns when one write takes too long."""
        while True:
            await asyncio.sleep(self._stall_seconds / 4)
            since = self._writing_since
            if since is not None and loop.time() - since > self._stall_seconds:
                log.info("reader stalled")
                return


async def client_gone(receive: Receive) -> None:
    """Returns when the client has closed the connection. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


class ClientGoneError(Exception):
    """Nobody waits for the reply any more."""


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client goes: then ClientGoneError."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(client_gone(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        for task in (working, gone):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(working, gone, return_exceptions=True)
