"""The adapters in a model's directory: what is there, bringing one in, taking one out.

    add(model, "zoo:recovery")
    for adapter in list_adapters(model): ...

An adapter comes from a directory, the zoo or the hub. Only its own files are taken (configuration, weights,
pomona.json, licences), never a link or anything else that lies beside them; the copy is checked as the
runtime would check it, and appears under its name when all of it is sound.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pomona.adapters.metadata import MAX_BYTES, AdapterRecord, Origin, read_record
from pomona.errors import PomonaError
from pomona.models import zoo
from pomona.models.config import ModelConfig
from pomona.models.import_hf import find_source, is_hub_id
from pomona.models.model_directory import (
    LICENCE_FILES,
    PROVENANCE_FILE,
    ModelDirectoryWriter,
    Progress,
    write_json,
)
from pomona.models.palettized import describe
from pomona.models.safetensors_file import bf16_from_float32
from pomona.runtime.adapter_file import CONFIG_FILE, MAX_RANK, WEIGHTS_FILE, AdapterFile, read_adapter
from pomona.runtime.model import ADAPTERS_FOLDER, BASE, RECOVERY

FILES = (CONFIG_FILE, WEIGHTS_FILE, PROVENANCE_FILE, *LICENCE_FILES)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HEADER_BYTES = 1 << 20  # room for a safetensors header beside the values


@dataclass(frozen=True)
class Installed:
    """An adapter in a model's directory. `problem`: why it cannot be used, in one line."""

    model: str
    name: str
    directory: Path
    bytes: int
    rank: int | None = None
    task: str | None = None
    license: str | None = None
    problem: str | None = None


def check_name(name: str) -> str:
    """`name`, if an adapter can be called so; PomonaError otherwise."""
    if not _NAME.fullmatch(name):
        raise PomonaError(
            f"{name!r}: cannot be the name of an adapter; use up to 64 letters, digits, '.', '_' and '-'"
        )
    if name == BASE:
        raise PomonaError(f"{BASE}: means the model without an adapter; choose another name")
    return name


def installed_names(model: Path) -> list[str]:
    """The names of what lies in the model's adapters folder, sorted."""
    folder = model / ADAPTERS_FOLDER
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def find(model: Path, name: str) -> Path:
    """The directory of a model's adapter. PomonaError, with what is there, if it has none of that name."""
    check_name(name)
    directory = model / ADAPTERS_FOLDER / name
    if not directory.is_dir():
        there = ", ".join(installed_names(model)) or "none"
        raise PomonaError(f"{model.name}: has no adapter {name} (there: {there}); see `pomona adapters list`")
    return directory


def list_adapters(model: Path) -> list[Installed]:
    """The adapters of a model. One that cannot be used is listed with its problem, not an error."""
    names = installed_names(model)
    if not names:
        return []
    config, mark = ModelConfig.from_directory(model), describe(model).fingerprint
    return [_installed(model, name, config, mark) for name in names]


def _installed(model: Path, name: str, config: ModelConfig, mark: str) -> Installed:
    directory = model / ADAPTERS_FOLDER / name
    size = sum(path.stat().st_size for path in directory.iterdir() if path.is_file())
    try:
        check_name(name)
        record = read_record(directory) or AdapterRecord()
        file = read_adapter(directory, config, mark)
    except PomonaError as error:
        return Installed(model.name, name, directory, size, problem=str(error))
    return Installed(model.name, name, directory, size, file.rank, record.task, record.license)


# --- bringing one in


@dataclass(frozen=True)
class _Source:
    directory: Path
    origin: Origin
    name: str
    inside: Path | None  # links are followed as long as they end below this; None: no links


def add(
    model: Path,
    source: str | Path,
    *,
    name: str | None = None,
    base_unknown_ok: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Installed:
    """Copies an adapter into the model's directory and gives it.

    source: a PEFT directory, `zoo:NAME` or a hub id. name: by default the source's. base_unknown_ok: the
    caller vouches that an adapter which does not name its base was trained for this one.
    The record that is written says where it came from, and the hashes of its files.
    Raises PomonaError, and leaves what was there: a bad name, one that is taken, no such source, a file that
    is a link or too large, whatever the runtime would refuse, another base (with both fingerprints), a base
    that is not named, values that are not finite.
    """
    config, mark = ModelConfig.from_directory(model), describe(model).fingerprint
    found = _find_source(model, str(source), mark, progress)
    target = model / ADAPTERS_FOLDER / check_name(found.name if name is None else name)
    largest = _largest_weights(config)
    with ModelDirectoryWriter(target, overwrite=overwrite, mark=CONFIG_FILE) as writer:
        for file in FILES:
            _take(found, file, writer.path, largest if file == WEIGHTS_FILE else MAX_BYTES)
        try:
            record = read_record(writer.path)
            checked = read_adapter(writer.path, config, mark)
            check_values(checked)
        except PomonaError as error:  # of the two places, the user knows one
            raise PomonaError(str(error).replace(str(writer.path), str(source))) from error
        record = _adopted(record or AdapterRecord(), found.origin, model.name, mark, base_unknown_ok)
        record = record.with_changes(sha256=file_hashes(writer.path))
        write_json(writer.path / PROVENANCE_FILE, record.to_json())
    return _installed(model, target.name, config, mark)


def _find_source(model: Path, source: str, mark: str, progress: Progress | None) -> _Source:
    if source.startswith(zoo.PREFIX):
        name = source.removeprefix(zoo.PREFIX)
        entry = zoo.find(mark, name)
        if entry is None:
            raise PomonaError(f"{source}: {_not_in_the_zoo(name, mark)}")
        origin = Origin(kind="zoo", source=f"{entry.model}/{entry.name}")
        return _Source(entry.path, origin, name, None)
    directory = Path(source or "no source").expanduser()
    if directory.is_dir():
        name = directory.resolve().name
        return _Source(directory, Origin(kind="directory", source=name), name, None)
    if not is_hub_id(source):
        raise PomonaError(
            f"{source}: is no adapter directory, {zoo.PREFIX}NAME or hub id (organisation/name); "
            "check the spelling"
        )
    snapshot = find_source(source, progress, FILES)
    inside, revision = snapshot, None
    if snapshot.parent.name == "snapshots":  # of the hub's cache, where files are links to its blobs
        inside, revision = snapshot.parents[1], snapshot.name
    origin = Origin(kind="hub", source=source, revision=revision)
    return _Source(snapshot, origin, source.rpartition("/")[2], inside)


def _not_in_the_zoo(name: str, mark: str) -> str:
    entries = zoo.entries()
    others = [entry for entry in entries if entry.name == name]
    if others:
        made_for = ", ".join(f"{entry.model} ({entry.base_fingerprint})" for entry in others)
        return f"was made for {made_for}, this base is {mark}; add it to the base that it was made for"
    here = ", ".join(sorted({e.name for e in entries if e.base_fingerprint == mark})) or "none"
    return f"the zoo has no such adapter (for base {mark}: {here}); choose one of them"


def _take(source: _Source, name: str, target: Path, largest: int) -> None:
    """Copies one file, if it is there. PomonaError for a link that leads out, no plain file, or too much."""
    path = source.directory / name
    if not os.path.lexists(path):
        if name in (CONFIG_FILE, WEIGHTS_FILE):
            raise PomonaError(
                f"{path}: is missing; give a PEFT directory with {CONFIG_FILE} and {WEIGHTS_FILE}"
            )
        return
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
    if source.inside is None:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    elif not path.resolve().is_relative_to(source.inside.resolve()):
        raise PomonaError(f"{path}: is a link that leads elsewhere; it is not followed, get the file itself")
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        what = "is a link" if error.errno == errno.ELOOP else f"cannot be read ({error.strerror})"
        raise PomonaError(f"{path}: {what}; give a directory with the file itself") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise PomonaError(f"{path}: is no plain file; give a directory with the file itself")
        if status.st_size > largest:
            raise PomonaError(
                f"{path}: has {status.st_size:,} bytes, such a file of an adapter of this base has at most "
                f"{largest:,}; get the right one"
            )
        with (target / name).open("wb") as copy:
            shutil.copyfileobj(file, copy)


def _largest_weights(config: ModelConfig) -> int:
    """Bytes of float32 values of the highest rank on all projections."""
    return _HEADER_BYTES + 4 * MAX_RANK * sum(
        rows + columns for rows, columns in config.linear_shapes().values()
    )


def _adopted(
    record: AdapterRecord, origin: Origin, model: str, mark: str, base_unknown_ok: bool
) -> AdapterRecord:
    """The record with its base and origin; PomonaError where the base is not known and nobody vouches."""
    if record.base_fingerprint is None:
        if not base_unknown_ok:
            raise PomonaError(
                f"{origin.source}: has no {PROVENANCE_FILE} that names its base; if you know that it was "
                f"trained for {model} ({mark}), add it with --base-unknown-ok"
            )
        origin = origin.model_copy(update={"base": "on the user's word"})
    elif record.origin is not None:  # somebody's word does not become better by being passed on
        origin = origin.model_copy(update={"base": record.origin.base})
    return record.with_changes(base_fingerprint=mark, origin=origin)


def check_values(file: AdapterFile) -> None:
    """PomonaError, naming the tensor, for a value that is not finite in bfloat16, in which adapters run."""
    for name, (dtype, array) in file.tensors.items():
        bits: NDArray[np.uint16] = array if dtype == "BF16" else bf16_from_float32(array.astype(np.float32))
        if ((bits & 0x7F80) == 0x7F80).any():
            raise PomonaError(
                f"{file.directory}: tensor {name!r} holds a value that is not finite; get a sound adapter"
            )


def file_hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of configuration and weights, by file name."""
    found = {}
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        with (directory / name).open("rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


# --- taking one out


def remove(model: Path, name: str, *, force: bool = False) -> Path:
    """Deletes an adapter of the model and gives the directory that is gone; of a link, the link alone.

    PomonaError: no such adapter, a folder that holds something else, `recovery` without `force`.
    """
    directory = find(model, name)
    if name == RECOVERY and not force:
        raise PomonaError(
            f"{RECOVERY}: is what {model.name} runs with by default, and gives back what compression took; "
            "give --force to remove it all the same"
        )
    if directory.is_symlink():
        directory.unlink()
        return directory
    if not (directory / CONFIG_FILE).is_file() and any(directory.iterdir()):
        raise PomonaError(f"{directory}: is no adapter (it has no {CONFIG_FILE}); delete it yourself")
    gone = directory.with_name(f".{name}.removed-{secrets.token_hex(4)}")
    try:
        directory.rename(gone)  # so that nobody sees half of it
    except OSError as error:
        raise PomonaError(f"{directory}: cannot be removed ({error.strerror}); check permissions") from error
    with contextlib.suppress(OSError):
        shutil.rmtree(gone)
    return directory
