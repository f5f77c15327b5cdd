"""A small OpenAI-compatible server whose answers a test writes: a function of the request's body."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Script = Callable[[dict[str, Any]], "str | tuple[int, str]"]


@dataclass
class ScriptedJudge:
    """source: as `pomona judge --judge` takes it. seen: the bodies that came."""

    url: str
    seen: list[dict[str, Any]] = field(default_factory=list)

    @property
    def source(self) -> str:
        return f"{self.url}#scripted"


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # all questions come at once, and the machine may be busy


@contextmanager
def scripted(script: Script) -> Iterator[ScriptedJudge]:
    """script gives the text of the answer, or a status and the words of an error."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            judge.seen.append(body)
            said = script(body)
            status, text = said if isinstance(said, tuple) else (200, said)
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            whole: dict[str, Any] = {"choices": [choice]} if status == 200 else {"error": {"message": text}}
            raw = json.dumps(whole).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: object) -> None:
            pass

    http = Server(("127.0.0.1", 0), Handler)
    judge = ScriptedJudge(f"http://127.0.0.1:{http.server_address[1]}/v1")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield judge
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
