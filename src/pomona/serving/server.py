"""Runs the application under uvicorn, and ends it in good order.

On SIGTERM or SIGINT the server says on /ready that it goes, refuses new requests with 503, closes its
listening socket and lets running requests come to their end for `drain_seconds`; what runs then is cancelled.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from pomona.errors import PomonaError
from pomona.serving.settings import ServerSettings
from pomona.serving.state import ServerState


class DrainingServer(uvicorn.Server):
    """Tells the application that it is about to end."""

    def __init__(self, config: uvicorn.Config, state: ServerState) -> None:
        super().__init__(config)
        self._state = state

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._state.draining = True
        super().handle_exit(sig, frame)
        if self._captured_signals.count(sig) > 1 and sig == signal.SIGTERM:
            self.force_exit = True


def make_server(app: FastAPI, settings: ServerSettings) -> DrainingServer:
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        ws="none",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
        h11_max_incomplete_event_size=32 << 10,
        backlog=1024,
    )
    return DrainingServer(config, app.state.pomona)


def bound_socket(settings: ServerSettings) -> socket.socket:
    """A listening address, before a model is loaded for it. PomonaError when it cannot be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise PomonaError(
            f"{settings.host}:{settings.port}: cannot be bound ({error.strerror or error}); choose another --port or --host"
        ) from error
    return listener


def run(
    app: FastAPI, settings: ServerSettings, listener: socket.socket, ready: Callable[[str], None]
) -> None:
    """Serves until a signal ends it. `ready` gets the address when connections are taken."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    server = make_server(app, settings)
    listener.listen(1024)
    ready(f"http://{shown}:{port}")
    server.run(sockets=[listener])
