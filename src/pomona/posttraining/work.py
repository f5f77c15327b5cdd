"""The work folder of a training run: one run, one process, resumed or forgotten by name."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pomona.errors import PomonaError
from pomona.models.locking import locked_folder


def need_training(technique: str) -> None:
    """PomonaError where the libraries of `pomona[train]` are missing."""
    missing = [
        name for name in ("torch", "transformers", "peft", "trl") if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise PomonaError(
            f"{technique}: needs {missing[0]}, which is not installed; run: pip install 'pomona[train]'"
        )


def set_threads(threads: int | None) -> None:
    import torch

    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))


@contextlib.contextmanager
def run_folder(work: Path, name: str, *, resume: bool, restart: bool) -> Iterator[Path]:
    """The folder of the run `name` (made of base, data and options) for this process alone.

    It is deleted when the block ends well. PomonaError: an unfinished run and neither resume nor restart, or
    nothing to resume.
    """
    folder = work / name
    with locked_folder(folder):
        unfinished = any(folder.glob("checkpoint-*"))
        if unfinished and not (resume or restart):
            raise PomonaError(f"{folder}: holds an unfinished run; give --resume to go on, or --restart")
        if resume and not unfinished:
            raise PomonaError(f"{folder}: holds no run to resume; start one without --resume")
        if restart:
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
