"""The load generator: what it reads from a server that behaves, and from one that does not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from benchmarks.load import Connection, LoadError, Reply, closed_loop, events, note, percentile

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def event(text: str, **others: Any) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": others.pop("finish_reason", None)}
    return b"data: " + json.dumps({"choices": [choice], **others}).encode() + b"\n\n"


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


async def request(reader: asyncio.StreamReader) -> dict[str, Any]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
    return dict(json.loads(await reader.readexactly(length)))


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: int = 1000) -> None:
    """Says the prompt, letter by letter, in chunks that cut events in two; keeps the connection."""
    for _ in range(answers):
        try:
            prompt = (await request(reader))["prompt"]
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
            return
        writer.write(STREAM)
        usage = {"prompt_tokens": 1, "completion_tokens": len(prompt)}
        told = b"".join([event(letter) for letter in prompt])
        told += event("", finish_reason="length", adapter="red", adapter_version=7)
        told += b": a comment\n\ndata: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"
        told += b"data: [DONE]\n\n"
        for at in range(0, len(told), 17):
            writer.write(chunk(told[at : at + 17]))
            await writer.drain()
        writer.write(b"0\r\n\r\n")


async def echo_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Says one prompt, and then hangs up without having said so, as llama.cpp's server does."""
    await echo(reader, writer, 1)
    await asyncio.sleep(0.01)  # the client may have asked again by now
    writer.close()


def serving(handler: Handler, ask: Callable[[int], Awaitable[Any]]) -> Any:
    """What `ask(port)` gives while `handler` serves."""

    async def run() -> Any:
        server = await asyncio.start_server(handler, "127.0.0.1", 0)
        async with server:
            return await asyncio.wait_for(ask(server.sockets[0].getsockname()[1]), 20)

    return asyncio.run(run())


class TestStreams:
    @pytest.mark.parametrize("handler", [echo, echo_once])
    def test_replies_come_in_the_order_of_the_requests_whole_and_timed(self, handler: Handler) -> None:
        bodies = [{"prompt": "x" * (number + 1)} for number in range(9)]
        replies, seconds = serving(handler, lambda port: closed_loop(port, "/v1/completions", bodies, 3))
        assert [reply.text for reply in replies] == [body["prompt"] for body in bodies]
        for number, reply in enumerate(replies):
            assert reply.status == 200 and reply.whole and reply.finish_reason == "length"
            assert reply.new_tokens == len(reply.times) == number + 1
            assert reply.adapter == ("red", 7)
            assert 0 < reply.first_token_seconds <= reply.ended - reply.started <= seconds
            assert (reply.token_seconds is None) == (number == 0)

    def test_a_client_waits_for_its_answer_before_it_asks_again(self) -> None:
        running = most = 0

        async def counting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal running, most
            while True:
                try:
                    await request(reader)
                except (asyncio.IncompleteReadError, ConnectionError):
                    writer.close()
                    return
                running += 1
                most = max(most, running)
                await asyncio.sleep(0.02)
                running -= 1
                told = event("a", usage={"completion_tokens": 1}) + b"data: [DONE]\n\n"
                writer.write(STREAM + chunk(told) + b"0\r\n\r\n")

        bodies = [{"prompt": "a"}] * 20
        serving(counting, lambda port: closed_loop(port, "/v1/completions", bodies, 4))
        assert most == 4

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\n{}", "status 429"),
            (STREAM + chunk(event("a")) + b"0\r\n\r\n", "status 200"),  # without its last word
            (STREAM + chunk(event("a")), "breaks off"),
            (STREAM + chunk(b'data: {"error": {"message": "no"}}\n\ndata: [DONE]\n\n') + b"0\r\n\r\n", "no"),
            (STREAM + chunk(b"data: {half\n\n") + b"0\r\n\r\n", "no JSON"),
            (b"nonsense\r\n\r\n", "no status line"),
            (b"", "no answer"),
        ],
    )
    def test_what_is_no_whole_answer_is_an_error(self, answer: bytes, message: str) -> None:
        async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await request(reader)
            writer.write(answer)
            writer.close()

        with pytest.raises(ExceptionGroup) as found:
            serving(broken, lambda port: closed_loop(port, "/v1/completions", [{"prompt": "a"}], 1))
        (error,) = found.value.exceptions
        assert isinstance(error, LoadError)
        assert message in str(error)

    def test_events_may_be_cut_anywhere(self) -> None:
        told = event("a") + event("b") + b": ping\n\ndata: [DONE]\n\n"

        async def pieces(size: int) -> AsyncIterator[bytes]:
            for at in range(0, len(told), size):
                yield told[at : at + size]

        async def read(size: int) -> list[bytes]:
            return [found async for found in events(pieces(size))]

        whole = asyncio.run(read(len(told)))
        assert len(whole) == 3 and whole[-1] == b"[DONE]"
        assert all(asyncio.run(read(size)) == whole for size in (1, 2, 7, 30))

    def test_chat_chunks_are_read_too(self) -> None:
        reply = Reply(200, {}, 0.0)
        for delta in ({"role": "assistant", "content": ""}, {"content": "Hel"}, {"content": "lo"}, {}):
            note(reply, json.dumps({"choices": [{"delta": delta, "finish_reason": None}]}).encode())
        assert reply.text == "Hello"
        assert len(reply.times) == 2  # an empty piece is no token


class TestConnection:
    def test_one_that_the_server_closes_is_not_used_again(self) -> None:
        async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
            writer.close()

        async def ask(port: int) -> bool:
            async with await Connection.open(port) as connection:
                reply = await connection.ask("GET", "/")
                assert reply.body == b"{}"
                return connection.usable

        assert serving(once, ask) is False

    def test_a_refusal_has_openai_s_error(self) -> None:
        right = Reply(400, {}, 0.0, body=b'{"error": {"message": "no", "param": "n"}}')
        assert right.error()["param"] == "n"
        for wrong in (b"", b"[]", b'{"error": "no"}', b"<html>"):
            assert Reply(400, {}, 0.0, body=wrong).error() == {}


def test_percentiles_are_values_that_were_there() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, share) for share in (0.0, 0.5, 0.95, 0.99, 1.0)] == [1, 50, 95, 99, 100]
    assert percentile([3.0], 0.95) == 3.0
    assert percentile([2.0, 1.0], 0.95) == 2.0
