"""A server on a free port of this machine, in a thread; and raw bytes to it, which no client would send."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import openai

from pomona.models.presets import PRESETS
from pomona.models.random_init import random_model
from pomona.runtime.model import Model
from pomona.serving.app import create_app
from pomona.serving.server import DrainingServer, bound_socket, make_server
from pomona.serving.settings import ServerSettings
from pomona.serving.state import ServerState

WAIT = 60.0  # seconds; a limit that only a broken program meets
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


@dataclass
class Running:
    """A server that runs."""

    port: int
    state: ServerState
    server: DrainingServer
    thread: threading.Thread

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def model_id(self) -> str:
        return self.state.model_id

    def client(self, **options: Any) -> openai.OpenAI:
        """The official client, without its retries."""
        options = {"api_key": "none", "max_retries": 0, "timeout": WAIT, **options}
        return openai.OpenAI(base_url=f"{self.url}/v1", **options)

    def http(self, **options: Any) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=WAIT, trust_env=False, **options)

    def raw(self, data: bytes) -> bytes:
        """What comes back for these very bytes, until the server closes or says nothing more for a second."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=WAIT) as connection:
            connection.sendall(data)
            received = b""
            connection.settimeout(1.0)
            try:
                while part := connection.recv(1 << 16):
                    received += part
            except (TimeoutError, ConnectionResetError):
                pass
            return received

    def idle(self) -> bool:
        stats = self.state.model.scheduler.stats()
        return stats.running == 0 and stats.waiting == 0


@contextmanager
def serving(model: Model, *, send_buffer: int | None = None, **settings: Any) -> Iterator[Running]:
    """The model stays the caller's, but a server starts its scheduler: one server per model at a time.
    send_buffer: bytes that the kernel keeps for a reader, of each connection; by default some megabytes."""
    options = ServerSettings(**{"port": 0, **settings})
    listener = bound_socket(options)
    if send_buffer is not None:  # connections inherit it
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    listener.listen(128)
    app = create_app(model, options)
    server = make_server(app, options)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield Running(listener.getsockname()[1], app.state.pomona, server, thread)
    finally:
        server.should_exit = True
        thread.join(WAIT)
        listener.close()
        assert not thread.is_alive(), "the server did not end"


def until(condition: Callable[[], bool], seconds: float = WAIT) -> None:
    """Waits for a condition that comes true if the program is right."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


def linked_model(source: Path, target: Path) -> Path:
    """The model's files under another directory, without its adapters."""
    shutil.copytree(
        source,
        target,
        ignore=shutil.ignore_patterns("adapters", "compression_report.json"),
        copy_function=_link,
    )
    return target


def _link(source: str, target: str) -> None:
    try:
        Path(target).hardlink_to(source)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def small_model(tokenizer_of: Path, target: Path) -> Path:
    """A random model that is fast and never comes to an end of its own, with the real model's tokenizer."""
    config = replace(
        PRESETS["afm-nano"],
        vocab_size=49152,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        head_dim=16,
        max_position_embeddings=4096,
    )
    random_model(config, target, seed=4)
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer_of / name, target / name)
    return target


def loaded(directory: Path, **options: Any) -> Model:
    return Model.load(str(directory), **{"threads": 1, **options})
