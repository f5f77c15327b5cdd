"""Clients of an OpenAI-compatible server: raw HTTP under asyncio, streams that are timed event by event.

    replies = asyncio.run(closed_loop(port, requests, clients=32))

A client sends its next request when it has the whole answer to the one before (a closed loop), on a
connection that it keeps. There is no HTTP library between: parsing a stream costs some microseconds per
token, so that the load takes little from a server on the same cores. `benchmarks/soak.py` uses the same
connections to misbehave.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

HOST = "127.0.0.1"
REPLY_SECONDS = 600.0
IDLE_SECONDS = 3.0
_LIMIT = 1 << 20  # bytes of a head or of a line of an event


class LoadError(Exception):
    """The server broke the protocol or went away."""


class NoAnswerError(LoadError):
    """The connection ended before the first byte of an answer."""


@dataclass
class Reply:
    """One answer as it came. Times are those of time.perf_counter(), in seconds."""

    status: int
    headers: Mapping[str, str]
    started: float  # when the request began to be sent
    times: list[float] = field(default_factory=list)  # of every event with text
    ended: float = 0.0
    pieces: list[str] = field(default_factory=list)
    usage: Mapping[str, Any] | None = None
    finish_reason: str | None = None
    whole: bool = False  # the stream's last word was there
    failure: Mapping[str, Any] | None = None  # an error within the stream
    body: bytes = b""  # of an answer that is no stream
    adapter: tuple[str | None, int | None] | None = None  # name and version, where a stream tells them

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def new_tokens(self) -> int:
        return int((self.usage or {}).get("completion_tokens", 0))

    @property
    def first_token_seconds(self) -> float:
        """From the first byte sent to the first text received."""
        return self.times[0] - self.started

    @property
    def token_seconds(self) -> float | None:
        """Mean seconds per token after the first; None for an answer of one token."""
        return (self.times[-1] - self.times[0]) / (self.new_tokens - 1) if self.new_tokens > 1 else None

    def error(self) -> Mapping[str, Any]:
        """The `error` member of a refusal or within a stream, empty if it is not in OpenAI's shape."""
        if self.failure is not None:
            return self.failure
        with contextlib.suppress(ValueError):
            found = json.loads(self.body)
            if isinstance(found, dict) and isinstance(found.get("error"), dict):
                return dict(found["error"])
        return {}


class Connection:
    """One HTTP/1.1 connection, kept for several requests. An async context manager."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        self.reader, self.writer, self.port = reader, writer, port
        self.usable = True  # False when the server wants, or the protocol needs, another one
        self._used = time.monotonic()

    @classmethod
    async def open(cls, port: int) -> Self:
        reader, writer = await asyncio.open_connection(HOST, port, limit=_LIMIT)
        return cls(reader, writer, port)

    @property
    def fresh(self) -> bool:
        """Good for another request: a server may close a connection on which nothing came for a while."""
        idle = time.monotonic() - self._used
        return self.usable and idle < IDLE_SECONDS and not self.reader.at_eof()

    async def send(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {HOST}:{self.port}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if body:
            lines.append("Content-Type: application/json")
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        try:
            await self.writer.drain()
        except ConnectionError as error:
            self.usable = False
            raise NoAnswerError(f"no answer: {error!r}") from error

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers (names in lower case) of the next answer."""
        try:
            raw = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError) as error:
            self.usable = False
            raise NoAnswerError(f"no answer: {error!r}") from error
        first, *lines = raw.decode("latin-1").split("\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        words = first.split(" ")
        if len(words) < 2 or not words[1].isdigit():
            raise LoadError(f"{first[:80]!r} is no status line")
        if headers.get("connection", "").lower() == "close":
            self.usable = False
        return int(words[1]), headers

    async def body(self, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
        """The body of the answer whose head was read, in the pieces in which it comes."""
        try:
            if headers.get("transfer-encoding", "").lower() == "chunked":
                while size := int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16):
                    yield (await self.reader.readexactly(size + 2))[:-2]
                await self.reader.readuntil(b"\r\n")
            elif "content-length" in headers:
                yield await self.reader.readexactly(int(headers["content-length"]))
            else:
                self.usable = False
                while piece := await self.reader.read(1 << 16):
                    yield piece
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, ValueError) as error:
            self.usable = False
            raise LoadError(f"the answer breaks off: {error!r}") from error

    async def ask(
        self, method: str, path: str, value: Any = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """One request, answered at once or as a stream of server-sent events."""
        raw = b"" if value is None else value if isinstance(value, bytes) else json.dumps(value).encode()
        started = time.perf_counter()
        await self.send(method, path, raw, headers)
        return await self.receive(started)

    async def receive(self, started: float) -> Reply:
        """The answer to a request that was sent."""
        status, headers = await self.head()
        reply = Reply(status, headers, started)
        if headers.get("content-type", "").startswith("text/event-stream"):
            async for event in events(self.body(headers)):
                note(reply, event)
        else:
            reply.body = b"".join([piece async for piece in self.body(headers)])
            reply.whole = True
        reply.ended = time.perf_counter()
        self._used = time.monotonic()
        return reply

    def close(self) -> None:
        self.usable = False
        self.writer.close()

    def vanish(self) -> None:
        """Ends the connection at once, as a client that crashed: what is unread is thrown away."""
        self.usable = False
        self.writer.transport.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


async def events(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of server-sent events out of a body in pieces. Comments and other fields are left out."""
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


def note(reply: Reply, event: bytes) -> None:
    """Adds an event of a stream of completions or chat completions to the reply."""
    if event == b"[DONE]":
        reply.whole = True
        return
    now = time.perf_counter()
    try:
        found = json.loads(event)
    except ValueError as error:
        raise LoadError(f"{event[:80]!r} is no JSON") from error
    if isinstance(found.get("error"), dict):
        reply.failure = found["error"]
    for choice in found.get("choices") or ():
        piece = choice.get("text")
        if piece is None:
            piece = (choice.get("delta") or {}).get("content")
        if piece:
            reply.times.append(now)
            reply.pieces.append(piece)
        reply.finish_reason = choice.get("finish_reason") or reply.finish_reason
    reply.usage = found.get("usage") or reply.usage
    if "adapter" in found:
        reply.adapter = (found["adapter"], found.get("adapter_version"))


async def closed_loop(
    port: int, path: str, bodies: Sequence[Mapping[str, Any]], clients: int
) -> tuple[list[Reply], float]:
    """Sends all requests, `clients` at a time, and gives the replies in the order of the requests, and the
    seconds from the first to the last. LoadError for an answer that is no whole stream."""
    waiting: Iterator[tuple[int, bytes]] = iter(
        [(index, json.dumps(body).encode()) for index, body in enumerate(bodies)]
    )
    replies: dict[int, Reply] = {}

    async def client() -> None:
        connection: Connection | None = None
        try:
            for index, body in waiting:  # all clients draw from one list
                reply = None
                if connection is not None:
                    # llama.cpp's server says keep-alive, and hangs up after a stream all the same.
                    with contextlib.suppress(NoAnswerError):
                        if connection.fresh:
                            reply = await asyncio.wait_for(connection.ask("POST", path, body), REPLY_SECONDS)
                    if reply is None:
                        connection.close()
                if connection is None or reply is None:
                    connection = await Connection.open(port)
                    reply = await asyncio.wait_for(connection.ask("POST", path, body), REPLY_SECONDS)
                if reply.status != 200 or reply.failure is not None or not reply.whole or not reply.times:
                    what = reply.error() or reply.body[:300]
                    raise LoadError(f"request {index}: status {reply.status}, {what!r}")
                replies[index] = reply
        finally:
            if connection is not None:
                connection.close()

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    seconds = time.perf_counter() - started
    return [replies[index] for index in range(len(bodies))], seconds


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that `share` of them do not exceed (nearest rank)."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]
