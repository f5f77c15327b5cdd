"""pomona: the whole life of a small language model, from import to compression to running it on a CPU.

    import pomona
    model = pomona.load("smollm2-135m-4bit")
    for piece in model.stream([{"role": "user", "content": "Why is the sky blue?"}]):
        print(piece, end="", flush=True)

Importing the package costs next to nothing; parts are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pomona.errors import PomonaError

if TYPE_CHECKING:
    from pomona.runtime.model import Model

__version__ = "0.1.0"
__all__ = ["PomonaError", "__version__", "load"]


def load(name: str, **options: Any) -> Model:
    """A model by cache name or directory, ready to answer; options as Model.load's."""
    from pomona.runtime.model import Model

    return Model.load(name, **options)
