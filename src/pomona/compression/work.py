"""The work folder of a long compression: what an interrupted run need not do again.

It lies beside the target as NAME.work and belongs to one source and one set of options; what another job left
in it is thrown away. A folder that no compression made is never touched. Files appear whole or not at all. It
is removed when the compression is done.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pomona.errors import PomonaError
from pomona.models.model_directory import DISK_FULL

_KEY = "pomona-work.json"  # also the mark by which a folder is known to be ours


class WorkFolder:
    """A folder of JSON objects and named arrays."""

    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        """Opens what an earlier run with the same `key` left, or begins anew.

        PomonaError: a folder that holds something else, or that cannot be written.
        """
        self.path = path
        try:
            if path.exists() and not (path / _KEY).is_file() and (not path.is_dir() or any(path.iterdir())):
                raise PomonaError(f"{path}: is no work folder of a compression; choose another --work")
            if self.read_json(_KEY) != json.loads(json.dumps(key)):
                if path.exists():
                    shutil.rmtree(path)
                path.mkdir(parents=True)
                self.write_json(_KEY, key)
        except OSError as error:
            raise _refusal(path, error) from error

    def read_json(self, name: str) -> Any:
        """None if it is not there, or damaged (then it is made again)."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def write_json(self, name: str, value: Any) -> None:
        with self._replaced(name) as partial:
            partial.write_text(json.dumps(value), encoding="utf-8")

    def read_arrays(self, name: str) -> dict[str, NDArray[Any]] | None:
        """None if they are not there, or damaged."""
        try:
            with np.load(self.path / name, allow_pickle=False) as file:
                return dict(file)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def write_arrays(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        with self._replaced(name) as partial, partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    @contextmanager
    def _replaced(self, name: str) -> Iterator[Path]:
        """A path to write to; the file takes its name when the block ends."""
        path = self.path / name
        partial = path.with_name(path.name + ".part")
        try:
            yield partial
            os.replace(partial, path)
        except OSError as error:
            if error.errno in DISK_FULL:  # for whoever writes the result to tell, with what it needs
                raise
            raise _refusal(path, error) from error
        finally:
            partial.unlink(missing_ok=True)


def _refusal(path: Path, error: OSError) -> PomonaError:
    return PomonaError(f"{path}: cannot be written ({error.strerror or error}); free space or choose --work")
