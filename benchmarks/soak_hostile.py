"""Requests that a server must refuse with a 4xx in OpenAI's error shape, and not stumble over.

`Nonsense.send` gives None if the server did so, else one line that says what it did instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.load import HOST, Connection, LoadError

CHAT = "/v1/chat/completions"
HUGE = 256 << 20  # bytes, above any limit that a server of small models has

Send = Callable[[Connection, str], Awaitable[str | None]]


@dataclass(frozen=True)
class Nonsense:
    name: str
    send: Send


def _refused(body: Callable[[str], bytes], *, method: str = "POST", path: str = CHAT) -> Send:
    async def send(connection: Connection, model: str) -> str | None:
        reply = await connection.ask(method, path, body(model))
        if not 400 <= reply.status < 500:
            return f"status {reply.status}, {reply.body[:100]!r}"
        if not reply.error().get("message"):
            return f"status {reply.status} without OpenAI's error shape: {reply.body[:100]!r}"
        return None

    return send


def _chat(**changes: Any) -> Callable[[str], bytes]:
    def body(model: str) -> bytes:
        plain = {"model": f"{model}:base", "messages": _said("Hello."), "max_tokens": 4}
        return json.dumps({**plain, **changes}).encode()

    return body


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _no_number(model: str) -> bytes:
    return _chat(temperature=0)(model).replace(b'"temperature": 0', b'"temperature": NaN')


def _text(raw: bytes) -> Callable[[str], bytes]:
    return lambda _: raw


async def _too_large_by_its_length(connection: Connection, _: str) -> str | None:
    """Announces far too much and starts to send it."""
    return await _flood(connection, [f"Content-Length: {HUGE}"], b'{"messages": "' + b"x" * (1 << 16))


async def _too_large_in_chunks(connection: Connection, _: str) -> str | None:
    """Says no length and goes on and on."""
    chunk = b"10000\r\n" + b"x" * (1 << 16) + b"\r\n"
    return await _flood(connection, ["Transfer-Encoding: chunked"], chunk)


async def _flood(connection: Connection, headers: list[str], piece: bytes) -> str | None:
    lines = [f"POST {CHAT} HTTP/1.1", f"Host: {HOST}:{connection.port}", "Content-Type: application/json"]
    connection.writer.write("\r\n".join([*lines, *headers, "", ""]).encode())
    answer = asyncio.create_task(connection.receive(time.perf_counter()))
    sent = 0
    # A server that has refused may close while we still send: what it said first is what counts.
    with contextlib.suppress(ConnectionError):
        while not answer.done() and sent < HUGE:
            connection.writer.write(piece)
            await connection.writer.drain()
            sent += len(piece)
            await asyncio.sleep(0)
    try:
        reply = await answer
    except (LoadError, OSError):
        return None if sent < HUGE else f"took {sent:,} bytes"
    return None if reply.status == 413 or reply.status == 400 else f"status {reply.status}"


async def _no_http(connection: Connection, _: str) -> str | None:
    connection.writer.write(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
    try:
        status, _headers = await connection.head()
    except LoadError:
        return None  # closed without a word
    return None if status == 400 else f"status {status}"


async def _half_a_request(connection: Connection, model: str) -> str | None:
    """The rest of the body never comes; the client goes away."""
    body = _chat()(model)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {HOST}:{connection.port}\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.writer.write(head.encode() + body[: len(body) // 2])
    await connection.writer.drain()
    connection.vanish()
    return None


HOSTILE = (
    Nonsense("no JSON", _refused(_text(b"{not json"))),
    Nonsense("no text", _refused(_text(b'{"model": "\xff\xfe"}'))),
    Nonsense("an empty body", _refused(_text(b""))),
    Nonsense("a list", _refused(_text(b"[1, 2, 3]"))),
    Nonsense("deep brackets", _refused(_text(b"[" * 100_000))),
    Nonsense("deep objects", _refused(_text(b'{"a":' * 50_000 + b"1" + b"}" * 50_000))),
    Nonsense("NaN", _refused(_no_number)),
    Nonsense("messages of a wrong kind", _refused(_chat(messages="Hello."))),
    Nonsense("no messages", _refused(_chat(messages=[]))),
    Nonsense("a role that is none", _refused(_chat(messages=[{"role": "king", "content": "Hello."}]))),
    Nonsense("a negative length", _refused(_chat(max_tokens=-1))),
    Nonsense("an unknown field", _refused(_chat(no_such_field=1))),
    Nonsense("an unknown model", _refused(_chat(model="gpt-nobody"))),
    Nonsense("a path for an adapter", _refused(_chat(model="x:../../etc/passwd"))),
    Nonsense("a prompt beyond the context", _refused(_chat(messages=_said("word " * 20_000)))),
    Nonsense("a broken schema", _refused(_chat(response_format={"type": "json_schema", "json_schema": 7}))),
    Nonsense("an unknown path", _refused(_text(b"{}"), path="/v1/nothing")),
    Nonsense("a wrong method", _refused(_text(b""), method="DELETE", path=CHAT)),
    Nonsense(
        "an adapter from outside the store",
        _refused(_text(b'{"name": "evil", "path": "/etc"}'), path="/v1/adapters"),
    ),
    Nonsense(
        "an adapter by a path with dots",
        _refused(_text(b'{"name": "evil", "path": "../../../../etc"}'), path="/v1/adapters"),
    ),
    Nonsense(
        "an adapter with a name that is a path",
        _refused(_text(b'{"name": "../evil", "path": "version-0"}'), path="/v1/adapters"),
    ),
    Nonsense("a body too large by its length", _too_large_by_its_length),
    Nonsense("a body too large in chunks", _too_large_in_chunks),
    Nonsense("no HTTP", _no_http),
    Nonsense("half a request", _half_a_request),
)
