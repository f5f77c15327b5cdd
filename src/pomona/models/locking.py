"""A folder that one process at a time may work in."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from pomona.errors import PomonaError


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """The folder, made if need be, for this process alone. PomonaError if another one works there."""
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise PomonaError(
            f"{folder}: cannot be used as work folder ({error.strerror}); choose another"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise PomonaError(f"{folder}: another process works there; wait for it to end") from None
        yield
    finally:
        os.close(descriptor)
