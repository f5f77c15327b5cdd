"""The work folder of a long compression: what an interrupted run need not do again.

It lies beside the target as NAME.work and belongs to one source and one set of options; anything else in
it is
thrown away. Files appear whole or not at all. It is removed when the compression is done.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pomona.errors import PomonaError
from pomona.models.model_directory import DISK_FULL

_KEY = "key.json"


class WorkFolder:
    """A folder of JSON objects and named arrays."""

    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        """Opens what an earlier run with the same `key` left, or begins anew. PomonaError: cannot be
        written."""
        self.path = path
        try:
            if self.read_json(_KEY) != json.loads(json.dumps(key)):
                shutil.rmtree(path, ignore_errors=True)
                path.mkdir(parents=True)
                self.write_json(_KEY, key)
        except OSError as error:
            raise self._refusal(path, error) from error

    def read_json(self, name: str) -> Any:
        """None if it is not there, or damaged (then it is made again)."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def write_json(self, name: str, value: Any) -> None:
        with self._written(name) as partial:
            partial.write_text(json.dumps(value), encoding="utf-8")

    def read_arrays(self, name: str) -> dict[str, NDArray[Any]] | None:
        """None if they are not there, or damaged."""
        try:
            with np.load(self.path / name, allow_pickle=False) as file:
                return dict(file)
        except (OSError, ValueError, KeyError, EOFError):
            return None
        except Exception as error:  # zipfile has errors of its own for a damaged file
            if type(error).__name__ == "BadZipFile":
                return None
            raise

    def write_arrays(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        with self._written(name) as partial, partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def _written(self, name: str) -> _Replacement:
        return _Replacement(self.path / name, self)

    def _refusal(self, path: Path, error: OSError) -> PomonaError:
        return PomonaError(
            f"{path}: cannot be written ({error.strerror or error}); free space or choose --work"
        )


class _Replacement:
    """A file that takes its name when it is complete."""

    def __init__(self, path: Path, folder: WorkFolder) -> None:
        self._path, self._folder = path, folder
        self._partial = path.with_name(path.name + ".part")

    def __enter__(self) -> Path:
        return self._partial

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is None:
            os.replace(self._partial, self._path)
            return
        self._partial.unlink(missing_ok=True)
        # A full disk is for whoever writes the result to tell, with what it needs.
        if isinstance(error, OSError) and error.errno not in DISK_FULL:
            raise self._folder._refusal(self._path, error) from error
