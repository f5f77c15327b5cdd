"""The application: one model, its handlers, the gate before them."""

from __future__ import annotations

from fastapi import FastAPI

from pomona import __version__
from pomona.runtime.model import Model
from pomona.serving import adapters, chat, completions, health, models, responses, tokenize
from pomona.serving.errors import add_handlers
from pomona.serving.gate import Gate
from pomona.serving.metrics import Metrics
from pomona.serving.settings import ServerSettings
from pomona.serving.state import ServerState


def create_app(model: Model, settings: ServerSettings) -> FastAPI:
    """The ASGI application. The model stays the caller's to close, after the application has ended."""
    state = ServerState(model, model.engine.directory.resolve().name, settings, Metrics())
    state.start()

    app = FastAPI(
        title="pomona",
        version=__version__,
        summary="OpenAI's interface on a model of this machine.",
        docs_url=None,  # those pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.pomona = state
    add_handlers(app)
    for part in (chat, completions, responses, models, adapters, tokenize, health):
        app.include_router(part.router)
    app.add_middleware(Gate, state=state)

    from pomona.serving.pages import add_pages

    add_pages(app)
    return app
