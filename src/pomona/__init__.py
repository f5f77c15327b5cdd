"""pomona: the whole life of a small language model, from import to compression to running it on a CPU.

    import pomona
    model = pomona.load("smollm2-135m-4bit")
    session = model.session(instructions="Answer in one sentence.")
    print(session.respond("Why is the sky blue?").text)

Importing the package costs next to nothing; parts are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pomona.errors import PomonaError

if TYPE_CHECKING:
    from pomona import features
    from pomona.runtime.backend import LanguageModel
    from pomona.runtime.model import Model
    from pomona.runtime.remote import RemoteModel
    from pomona.runtime.reply import Reply
    from pomona.runtime.sampling import Sampling
    from pomona.runtime.session import Session
    from pomona.runtime.tools import Tool
    from pomona.runtime.transcript import Transcript

__version__ = "0.1.0"
__all__ = [
    "LanguageModel",
    "Model",
    "PomonaError",
    "RemoteModel",
    "Reply",
    "Sampling",
    "Session",
    "Tool",
    "Transcript",
    "__version__",
    "features",
    "load",
]

_PLACES = {
    "LanguageModel": "backend",
    "Model": "model",
    "RemoteModel": "remote",
    "Reply": "reply",
    "Sampling": "sampling",
    "Session": "session",
    "Tool": "tools",
    "Transcript": "transcript",
}


def load(name: str, **options: Any) -> Model:
    """A model by cache name or directory, ready to answer; options as Model.load's."""
    from pomona.runtime.model import Model

    return Model.load(name, **options)


def __getattr__(name: str) -> Any:
    if name == "features":
        return import_module("pomona.features")
    if name not in _PLACES:
        raise AttributeError(f"module 'pomona' has no attribute {name!r}")
    return getattr(import_module(f"pomona.runtime.{_PLACES[name]}"), name)
