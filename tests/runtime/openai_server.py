"""A small HTTP server that talks like OpenAI's chat completions, well or badly, as a test wants it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """One response: status, headers and the parts of its body, sent one after the other."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    parts: list[bytes] = field(default_factory=list)
    hold: threading.Event | None = None  # waited for before the last part
    cut: bool = False  # break off without ending the body


@dataclass
class Seen:
    """One request as it arrived."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class OpenAIServer:
    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.seen: list[Seen] = []
        self.url = ""

    def will(self, *answers: Answer) -> None:
        self.answers += answers

    @property
    def last(self) -> dict[str, Any]:
        return self.seen[-1].body


@contextmanager
def serving() -> Iterator[OpenAIServer]:
    server = OpenAIServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.seen.append(Seen(self.path, dict(self.headers), json.loads(body)))
            answer = server.answers.pop(0)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                for number, part in enumerate(filter(None, answer.parts)):
                    if answer.hold is not None and number == len(answer.parts) - 1:
                        answer.hold.wait(30)
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                    self.wfile.flush()
                if not answer.cut:
                    self.wfile.write(b"0\r\n\r\n")
            except (BrokenPipeError, ConnectionResetError):
                pass  # the reader has gone
            self.close_connection = answer.cut

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


USAGE = {"prompt_tokens": 12, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 8}}
JSON = {"Content-Type": "application/json"}
EVENTS = {"Content-Type": "text/event-stream; charset=utf-8"}


def calls_of(*calls: tuple[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "id": f"srv_{number}",
            "type": "function",
            "function": {
                "name": name,
                "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments),
            },
        }
        for number, (name, arguments) in enumerate(calls)
    ]


def completion(text: str | None = None, *calls: tuple[str, Any], finish: str = "", **message: Any) -> Answer:
    """A whole answer of text, or of tool calls."""
    content: dict[str, Any] = {"role": "assistant", "content": text, **message}
    if calls:
        content["tool_calls"] = calls_of(*calls)
    choice = {
        "index": 0,
        "message": content,
        "finish_reason": finish or ("tool_calls" if calls else "stop"),
        "logprobs": None,
    }
    body = {"id": "x", "object": "chat.completion", "choices": [choice], "usage": USAGE}
    return Answer(200, JSON, [json.dumps(body).encode()])


def event(body: Any) -> bytes:
    return f"data: {body if isinstance(body, str) else json.dumps(body)}\n\n".encode()


def chunk(finish: str | None = None, **delta: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return event({"object": "chat.completion.chunk", "choices": [choice]})


def stream(*events: bytes, done: bool = True, **options: Any) -> Answer:
    """A streamed answer."""
    return Answer(200, EVENTS, [*events, *([event("[DONE]")] if done else [])], **options)


def words(*pieces: str, finish: str = "stop") -> Answer:
    """A streamed answer of text, with its usage, as the servers send it."""
    return stream(
        chunk(role="assistant", content=""),
        *(chunk(content=piece) for piece in pieces),
        chunk(finish),
        event({"choices": [], "usage": USAGE}),
    )


def refusal(status: int, body: Any = "", **headers: str) -> Answer:
    text = body if isinstance(body, str) else json.dumps(body)
    return Answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, [text.encode()])
