"""Looking at an adapter: what it is (`show`), and whether all of it is as it should be (`verify`)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pomona.adapters import store
from pomona.adapters.metadata import AdapterRecord, read_record, read_small_json
from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.model_directory import PROVENANCE_FILE
from pomona.models.palettized import describe, fingerprint
from pomona.models.safetensors_file import Checkpoint
from pomona.runtime.adapter_file import CONFIG_FILE, WEIGHTS_FILE, AdapterFile, read_adapter
from pomona.runtime.adapter_pairs import pairs_of


@dataclass(frozen=True)
class Kind:
    """All projections of one kind. norm: Frobenius norm of the change that the adapter makes to all of them,
    scale * B A; size: root mean square of the change of one weight."""

    name: str
    layers: int
    norm: float
    size: float


@dataclass(frozen=True)
class Details:
    """What `pomona adapters show` tells. sha256: of the files as they are now."""

    model: str
    name: str
    directory: Path
    bytes: int
    rank: int
    alpha: float
    values: int
    kinds: tuple[Kind, ...]
    sha256: dict[str, str]
    record: AdapterRecord | None

    def to_json(self) -> dict[str, Any]:
        record = None if self.record is None else self.record.to_json()
        kinds = [asdict(kind) for kind in self.kinds]
        return {**vars(self), "kinds": kinds, "record": record}


@dataclass(frozen=True)
class Check:
    """One check of `verify`: what was looked at, whether it is in order, and what was found."""

    name: str
    ok: bool
    found: str


def show(model: Path, name: str) -> Details:
    """PomonaError for an adapter that the runtime would refuse."""
    directory = store.find(model, name)
    file = read_adapter(directory, ModelConfig.from_directory(model), describe(model).fingerprint)
    return Details(
        model.name,
        name,
        directory,
        sum(path.stat().st_size for path in directory.iterdir() if path.is_file()),
        file.rank,
        file.rank * next(iter(file.scales.values())),
        sum(array.size for _, array in file.tensors.values()),
        _kinds(file),
        store.file_hashes(directory),
        read_record(directory),
    )


def _kinds(file: AdapterFile) -> tuple[Kind, ...]:
    squares: dict[str, list[float]] = {}
    weights: dict[str, int] = {}
    for module, pair in pairs_of(file).items():
        a_RK, b_NR = (part.astype(np.float64) for part in pair)
        # |B A|^2 = sum (B^T B) * (A A^T): rank x rank, where B A itself would be a whole weight
        square = float(np.sum((b_NR.T @ b_NR) * (a_RK @ a_RK.T))) * file.scales[module] ** 2
        kind = module.rpartition(".")[2]
        squares.setdefault(kind, []).append(max(square, 0.0))
        weights[kind] = weights.get(kind, 0) + len(b_NR) * a_RK.shape[1]
    return tuple(
        Kind(kind, len(found), math.sqrt(sum(found)), math.sqrt(sum(found) / weights[kind]))
        for kind, found in squares.items()
    )


def verify(model: Path, name: str) -> list[Check]:
    """Every check that there is, in order; later ones are made even where earlier ones fail.

    PomonaError only if the model has no such adapter, or the model itself cannot be read.
    """
    directory = store.find(model, name)
    config, mark = ModelConfig.from_directory(model), describe(model).fingerprint
    checks: list[tuple[str, Callable[[], str]]] = [
        ("files", lambda: _check_files(directory)),
        ("record", lambda: _check_record(directory)),
        ("base", lambda: _check_base(model, mark)),
        ("shapes", lambda: _check_shapes(directory, config, mark)),
        ("values", lambda: _check_numbers(directory, config, mark)),
        ("hashes", lambda: _check_hashes(directory)),
    ]
    return [_checked(name, check) for name, check in checks]


def _checked(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, check())
    except PomonaError as error:
        return Check(name, False, str(error))


def _check_files(directory: Path) -> str:
    known = {*store.FILES, "README.md"}
    found = sorted(os.scandir(directory), key=lambda entry: entry.name)
    for entry in found:
        if entry.name not in known:
            raise PomonaError(f"{entry.path}: belongs to no adapter; move it away")
        if entry.is_symlink() or not entry.is_file():
            raise PomonaError(f"{entry.path}: is no plain file; put the file itself there")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (directory / name).is_file():
            raise PomonaError(f"{directory / name}: is missing; get the adapter again")
    return f"{len(found)} files, nothing else"


def _check_record(directory: Path) -> str:
    read_small_json(directory / CONFIG_FILE)
    record = read_record(directory)
    if record is None or record.base_fingerprint is None:
        raise PomonaError(
            f"{directory / PROVENANCE_FILE}: names no base, so the adapter runs on any that has its shapes; "
            "add it again with `pomona adapters add`"
        )
    return f"task {record.task or 'not named'}, licence {record.license or 'not named'}"


def _check_base(model: Path, mark: str) -> str:
    with Checkpoint(model) as checkpoint:
        found = fingerprint(checkpoint)
    if found != mark:
        raise PomonaError(
            f"{model}: its config.json says fingerprint {mark}, its weights have {found}; "
            "pull or compress the model again"
        )
    return f"fingerprint {mark}, by its weights"


def _check_shapes(directory: Path, config: ModelConfig, mark: str) -> str:
    file = read_adapter(directory, config, mark)
    return f"rank {file.rank} on {len(file.scales)} projections of this base"


def _check_numbers(directory: Path, config: ModelConfig, mark: str) -> str:
    file = read_adapter(directory, config, mark)
    store.check_values(file)
    return f"{sum(array.size for _, array in file.tensors.values()):,} values, all finite"


def _check_hashes(directory: Path) -> str:
    record = read_record(directory)
    if record is None or record.sha256 is None:
        return "none recorded (pomona adapters add and export record them)"
    for name in record.sha256:
        if name not in (CONFIG_FILE, WEIGHTS_FILE):
            raise PomonaError(f"{directory / PROVENANCE_FILE}: has a hash of {name!r}, which is no such file")
    found = store.file_hashes(directory)
    for name, wanted in record.sha256.items():
        if found[name] != wanted:
            raise PomonaError(
                f"{directory / name}: has SHA-256 {found[name]}, its record says {wanted}; get it again"
            )
    return f"SHA-256 of {' and '.join(record.sha256)} as recorded"
