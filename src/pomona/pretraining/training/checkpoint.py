"""Checkpoints of a stage: float32 weights and optimizer state as safetensors, and what they belong to.

    checkpoint-00001000/
        model.safetensors        F32, the names of the Hugging Face checkpoint
        loss.safetensors         F32, the parameters of a loss that has some
        optimizer.safetensors    F32, STATE/NAME, for example square/model.norm.weight
        state.json               step, tokens, identity of the run, bytes and SHA-256 of each file

Tensors are gathered one by one and written by the first process, so a checkpoint does not depend on how many
processes made it, and any number may go on from it. A folder is whole or absent. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pomona.errors import PomonaError
from pomona.models.model_directory import ModelDirectoryWriter, read_json_object, write_json
from pomona.models.safetensors_file import SafetensorsFile, SafetensorsWriter, TensorSpec
from pomona.pretraining.recipe import difference
from pomona.pretraining.training.model import put, whole

STATE, MODEL, LOSS, OPTIMIZER = "state.json", "model.safetensors", "loss.safetensors", "optimizer.safetensors"
_FOLDER = re.compile(r"checkpoint-(\d{8})")
_FORMAT = 1

Named = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Progress:
    """Where the stage stands: steps made or dropped, tokens read, steps dropped in all and in a row."""

    step: int = 0
    tokens: int = 0
    dropped: int = 0
    dropped_in_a_row: int = 0


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _FOLDER.fullmatch(path.name) and path.is_dir())


def save(
    folder: Path,
    progress: Progress,
    identity: Mapping[str, Any],
    *,
    model: Named,
    loss: Named,
    optimizer: torch.optim.Optimizer,
    keep: int,
    main: bool,
) -> Path:
    """Write the checkpoint of this step and remove all but the newest `keep`. All processes must call it;
    `main` is the one that writes."""
    target = folder / f"checkpoint-{progress.step:08d}"
    with ExitStack() as stack:
        path = None
        if main:
            path = stack.enter_context(ModelDirectoryWriter(target, overwrite=True, mark=STATE)).path
        states = _optimizer_tensors(optimizer, {**model, **{f"loss.{name}": t for name, t in loss.items()}})
        files = {MODEL: model, OPTIMIZER: states} | ({LOSS: loss} if loss else {})
        sums = {}
        for name, tensors in files.items():
            _write(None if path is None else path / name, tensors)
            if path is not None:
                sums[name] = {"bytes": (path / name).stat().st_size, "sha256": _sha256(path / name)}
        if path is not None:
            state = {
                "format": _FORMAT,
                "progress": vars(progress),
                "identity": dict(identity),
                "files": sums,
            }
            write_json(path / STATE, state)
    if main:
        for old in checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    return target


class Saved:
    """An open checkpoint, every byte of which was checked. `weights()` may be used after `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        state = read_json_object(path / STATE)
        try:
            if state["format"] != _FORMAT:
                raise PomonaError(f"{path}: is of format {state['format']}; use the pomona that wrote it")
            self.progress = Progress(**state["progress"])
            self.identity: dict[str, Any] = state["identity"]
            files = {
                name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in state["files"].items()
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._corrupt(f"{STATE} is not what was written") from error
        if not {MODEL, OPTIMIZER} <= set(files) <= {MODEL, OPTIMIZER, LOSS}:
            raise self._corrupt(f"{STATE} names other files")
        for name, (size, sha256) in files.items():
            file = path / name
            if not file.is_file() or file.stat().st_size != size or _sha256(file) != sha256:
                raise self._corrupt(f"{name} is not as it was written")
        self._files = {name: SafetensorsFile(path / name) for name in files}

    def check(self, identity: Mapping[str, Any]) -> None:
        """PomonaError if the checkpoint belongs to another recipe, naming the first difference."""
        found = difference(self.identity, json.loads(json.dumps(dict(identity))))
        if found is not None:
            raise PomonaError(
                f"{self.path}: belongs to another recipe ({found}); go on with the recipe that it was made "
                "with, or give --restart"
            )

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Name -> read-only array, mapped."""
        file = self._files[MODEL]
        return {name: file.array(name) for name in file.tensors}

    def load_loss(self, loss: Named) -> None:
        """Puts the saved values into the parameters of a loss."""
        if not loss:
            return
        if LOSS not in self._files:
            raise PomonaError(f"{self.path}: was made with another loss; resume with the same one")
        for name, tensor in loss.items():
            put(tensor, self._files[LOSS].array(name))

    def load_optimizer(self, optimizer: torch.optim.Optimizer, model: Named, loss: Named) -> None:
        """Fills the optimizer's state, sharded as its parameters are."""
        file = self._files[OPTIMIZER]
        named = {**model, **{f"loss.{name}": tensor for name, tensor in loss.items()}}
        for key in file.tensors:
            kind, _, name = key.partition("/")
            values = file.array(key)
            state = optimizer.state[named[name]]
            # A count is a plain scalar; everything else has the parameter's shape, placement and device.
            state[kind] = torch.zeros(()) if values.ndim == 0 else torch.zeros_like(named[name])
            put(state[kind], values)

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _corrupt(self, what: str) -> PomonaError:
        return PomonaError(
            f"{self.path}: the checkpoint is corrupt ({what}); remove this folder to go on from the "
            "one before, "
            "or give --restart"
        )


@contextmanager
def latest(folder: Path) -> Iterator[Saved | None]:
    """The newest checkpoint of a stage, opened and checked, or None. PomonaError if it is corrupt."""
    found = checkpoints(folder)
    if not found:
        yield None
        return
    saved = Saved(found[-1])
    try:
        yield saved
    finally:
        saved.close()


def remove_unfinished(folder: Path) -> None:
    """Removes what a killed process left beside the checkpoints. For the one process that works there."""
    for path in folder.glob(".checkpoint-*.partial-*"):
        shutil.rmtree(path, ignore_errors=True)


def _optimizer_tensors(optimizer: torch.optim.Optimizer, named: Named) -> dict[str, torch.Tensor]:
    return {
        f"{kind}/{name}": value
        for name, parameter in named.items()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def _write(path: Path | None, tensors: Named) -> None:
    """All processes gather each tensor; the one with a path writes it."""
    if path is None:
        for tensor in tensors.values():
            whole(tensor)
        return
    specs = [TensorSpec(name, "F32", tuple(tensor.shape)) for name, tensor in tensors.items()]
    with SafetensorsWriter(path, specs, {"format": "pt"}) as writer:
        for name, tensor in tensors.items():
            writer.write(name, whole(tensor))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
