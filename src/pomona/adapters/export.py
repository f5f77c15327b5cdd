"""Handing an adapter on: a clean PEFT directory, or the same as one archive.

What comes out holds the configuration without paths of this machine, the weights byte for byte, pomona.json
with the hashes of both, the licence texts, and a README.md that says what it is. The same adapter gives the
same bytes every time: names are sorted, and an archive has no times, owners or modes of this machine.
"""

from __future__ import annotations

import gzip
import io
import os
import secrets
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

from pomona.adapters import store
from pomona.adapters.metadata import AdapterRecord, read_record, read_small_json
from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.import_hf import is_hub_id
from pomona.models.model_directory import (
    LICENCE_FILES,
    PROVENANCE_FILE,
    ModelDirectoryWriter,
    copy_files,
    write_json,
)
from pomona.models.palettized import describe
from pomona.runtime.adapter_file import CONFIG_FILE, WEIGHTS_FILE, read_adapter

TAR_ENDINGS = (".tar.gz", ".tgz")
ZIP_ENDING = ".zip"
_MODE = 0o644
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that the format can say


def export(model: Path, name: str, target: Path, *, overwrite: bool = False) -> Path:
    """Writes a model's adapter to `target`: a .tar.gz, .tgz or .zip file with one folder, or a directory.

    Raises PomonaError: no such adapter, one that the runtime would refuse, a target that is there.
    """
    directory = store.find(model, name)
    mark = describe(model).fingerprint
    store.check_values(read_adapter(directory, ModelConfig.from_directory(model), mark))
    target = target.expanduser()
    if not target.name.endswith((*TAR_ENDINGS, ZIP_ENDING)):
        with ModelDirectoryWriter(target, overwrite=overwrite, mark=CONFIG_FILE) as writer:
            write_directory(writer.path, model, directory, mark)
        return writer.target
    if os.path.lexists(target) and (not overwrite or not target.is_file()):
        raise PomonaError(f"{target}: already exists; choose another name, or ask to overwrite it")
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / name
        folder.mkdir()
        write_directory(folder, model, directory, mark)
        _write_archive(folder, target)
    return target


def write_directory(folder: Path, model: Path, directory: Path, mark: str) -> None:
    """The files of the export in an empty folder."""
    config = read_small_json(directory / CONFIG_FILE)
    origin = config.get("base_model_name_or_path")
    if not isinstance(origin, str) or not is_hub_id(origin):  # else a path of the machine that trained it
        config["base_model_name_or_path"] = None
    write_json(folder / CONFIG_FILE, dict(sorted(config.items())))
    shutil.copyfile(directory / WEIGHTS_FILE, folder / WEIGHTS_FILE)
    record = (read_record(directory) or AdapterRecord()).with_changes(
        base_fingerprint=mark, sha256=store.file_hashes(folder)
    )
    write_json(folder / PROVENANCE_FILE, record.to_json())
    if not copy_files(directory, folder, LICENCE_FILES):
        copy_files(model, folder, LICENCE_FILES)  # an adapter is a work on its base
    (folder / "README.md").write_text(_page(directory.name, record), encoding="utf-8")


def _page(name: str, record: AdapterRecord) -> str:
    lines = [
        f"# {name}",
        "",
        "A LoRA adapter (PEFT) for pomona. It belongs to exactly one base, whose fingerprint is",
        f"`{record.base_fingerprint}`; on another one it is refused.",
        "",
        f"- task: {record.task or 'not named'}",
        f"- licence: {record.license or 'not named; ask whoever made it'}",
    ]
    if record.license_note:
        lines.append(f"- about the licence: {' '.join(record.license_note.split())}")
    if record.origin is not None:
        lines.append(f"- came from: {record.origin.kind} {record.origin.source}")
    made = ", ".join(key for key in ("recipe", "data", "text", "result", "metrics") if getattr(record, key))
    if made:
        lines.append(f"- how it was made ({made}): {PROVENANCE_FILE}")
    lines += ["", "    pomona adapters add MODEL DIRECTORY", ""]
    return "\n".join(lines)


def _write_archive(folder: Path, target: Path) -> None:
    """All files of `folder`, under its name, as one file that appears whole."""
    part = target.with_name(f".{target.name}.partial-{secrets.token_hex(4)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            if target.name.endswith(ZIP_ENDING):
                _write_zip(folder, file)
            else:
                _write_tar(folder, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except OSError as error:
        raise PomonaError(
            f"{target}: cannot be written ({error.strerror or error}); check path and free space"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _write_tar(folder: Path, file: io.BufferedWriter) -> None:
    with (
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for path in sorted(folder.iterdir()):
            entry = tarfile.TarInfo(f"{folder.name}/{path.name}")
            entry.size, entry.mode = path.stat().st_size, _MODE
            with path.open("rb") as content:
                archive.addfile(entry, content)


def _write_zip(folder: Path, file: io.BufferedWriter) -> None:
    """Stored, not deflated: trained values hardly shrink, and the bytes do not depend on the zlib here."""
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.iterdir()):
            entry = zipfile.ZipInfo(f"{folder.name}/{path.name}", _ZIP_TIME)
            entry.create_system, entry.external_attr = 3, _MODE << 16
            with path.open("rb") as content, archive.open(entry, "w") as packed:
                shutil.copyfileobj(content, packed)
