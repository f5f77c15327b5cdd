"""Runs the application under uvicorn, and ends it in good order.

On SIGTERM or SIGINT the server says on /ready that it goes, refuses new requests with 503, closes its
listening socket and lets running requests come to their end for `drain_seconds`; what runs then is cancelled.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from pomona.errors import PomonaError
from pomona.runtime.model import Model
from pomona.serving.app import create_app
from pomona.serving.settings import ServerSettings
from pomona.serving.state import ServerState

BACKLOG = 1024


class DrainingServer(uvicorn.Server):
    """Tells the application that it is about to end."""

    def __init__(self, config: uvicorn.Config, state: ServerState) -> None:
        super().__init__(config)
        self._state = state

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, a second one ends at once. Unlike uvicorn's, it is not raised again at the
        end: a server that was asked to go and went has not failed."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self._state.draining = True


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
        backlog=BACKLOG,
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
            f"{settings.host}:{settings.port}: cannot be bound ({error.strerror or error}); choose another "
            "--port or --host"
        ) from error
    return listener


def serve(settings: ServerSettings, ready: Callable[[str, str], None]) -> None:
    """Loads the model and serves it until a signal ends it.

    `ready` gets the address and the model's id when connections are taken. Raises PomonaError for an address
    that cannot be bound and a model that cannot be loaded, in this order: the first costs no time.
    """
    from pomona.serving.logs import set_up

    with bound_socket(settings) as listener:
        set_up(settings.log_level)
        model = Model.load(
            settings.model, threads=settings.threads, isa=settings.isa, kv_tokens=settings.kv_tokens
        )
        with model:
            app = create_app(model, settings)
            server = make_server(app, settings)
            listener.listen(BACKLOG)
            ready(_address(listener), app.state.pomona.model_id)
            server.run(sockets=[listener])


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
