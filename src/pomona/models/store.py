"""Where models live on this machine, and what a user may call them.

A model is named by a directory, or by a name in the cache: the folder "models" of `cache_dir()`. `pull` puts
a model there, from the built-in package, a GGUF file, a Hugging Face directory or the hub; `resolve` finds it
again. Nothing but `pull` uses the network, and a name that is not there is never downloaded on the side.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

from pomona.errors import PomonaError
from pomona.models.builtin import BUILTIN, fetch
from pomona.models.import_hf import convert, find_source, is_hub_id
from pomona.models.model_directory import (
    CONFIG_FILE,
    PROVENANCE_FILE,
    ModelDirectoryWriter,
    Progress,
    read_json_object,
    write_json,
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def cache_dir() -> Path:
    """$POMONA_CACHE, else $XDG_CACHE_HOME/pomona, else ~/.cache/pomona. It need not exist yet."""
    own = os.environ.get("POMONA_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    base = (
        Path(shared) if Path(shared).is_absolute() else Path.home() / ".cache"
    )  # the XDG rule: relative is ignored
    return base / "pomona"


def models_dir() -> Path:
    """The directory of the cached models."""
    return cache_dir() / "models"


def cached_models() -> list[str]:
    """The names of the models in the cache, sorted."""
    places = models_dir().glob(f"*/{CONFIG_FILE}")
    return sorted(place.parent.name for place in places if not place.parent.name.startswith("."))


def resolve(source: str | Path) -> Path:
    """The model directory that `source` means: a directory, a name in the cache, or a hub id that was pulled.

    A directory wins over a cached model of the same name. Raises PomonaError that says what is here and what
    to run.
    """
    text = str(source)
    directory = Path(text).expanduser()
    if text and (directory / CONFIG_FILE).is_file():
        return directory
    if _NAME.fullmatch(text) and (models_dir() / text / CONFIG_FILE).is_file():
        return models_dir() / text
    if text in BUILTIN:
        raise PomonaError(f"{text}: is not on this machine yet; run `pomona pull {text}`")
    if text and directory.is_dir():
        raise PomonaError(f"{text}: is no model directory (no {CONFIG_FILE}); give the directory of a model")
    if text.endswith(".gguf"):
        raise PomonaError(f"{text}: a GGUF file is imported before it is used; run `pomona pull {text}`")
    if is_hub_id(text):
        place = models_dir() / _default_name(text)
        if _provenance(place).get("source") == text:
            return place
        raise PomonaError(f"{text}: is neither a directory nor pulled from the hub; run `pomona pull {text}`")
    here = ", ".join(cached_models()) or "none"
    raise PomonaError(
        f"{text}: is neither a directory nor a model in the cache (there: {here}); "
        f"run `pomona pull` with a built-in name ({', '.join(BUILTIN)}), a .gguf file, directory or hub id"
    )


def pull(
    source: str | Path,
    *,
    name: str | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Path:
    """Bring a model into the cache and give its directory; all of it is there at the end, or nothing.

    `source`: a built-in name, a .gguf file, a Hugging Face directory or a hub id. `name` is what it will be
    called (by default the built-in name, or the last part of the source). Pulling a built-in or hub model
    that is there already does nothing, unless `overwrite`. pomona.json in the directory records the source
    and the licence as far as known.

    Raises PomonaError: unknown source, name taken by another model, and whatever fetching and importing
    raise.
    """
    text = str(source)
    record = _record(text)
    known = _default_name(text) if name is None else name
    if not _NAME.fullmatch(known):
        raise PomonaError(f"{known}: cannot be the name of a model; use letters, digits, '.', '_' and '-'")
    target = models_dir() / known
    if target.exists() and not overwrite:
        there = _provenance(target)
        if record["kind"] in ("builtin", "hub") and all(
            there.get(key) == record[key] for key in ("kind", "source")
        ):
            return target
        raise PomonaError(
            f"{known}: the cache has a model of that name; choose another name, or ask to overwrite it"
        )
    with ModelDirectoryWriter(target, overwrite=overwrite) as writer:
        if record["kind"] == "builtin":
            with tempfile.TemporaryDirectory(dir=writer.path) as work:
                _import_gguf(fetch(text, Path(work), progress=progress), writer, progress)
        elif record["kind"] == "gguf":
            _import_gguf(Path(text).expanduser(), writer, progress)
        else:
            directory = find_source(text, progress)
            if record["kind"] == "hub" and directory.parent.name == "snapshots":
                record["revision"] = directory.name
            convert(directory, writer.path, progress=progress)
        write_json(writer.path / PROVENANCE_FILE, record)
    return writer.target


def _record(source: str) -> dict[str, Any]:
    """What pomona.json says of the source. Of a local path only the last part: the file travels along."""
    if source in BUILTIN:
        model = BUILTIN[source]
        return {
            "version": 1,
            "kind": "builtin",
            "source": source,
            "package": f"{model.package}=={model.version}",
            "file": model.file,
            "file_sha256": model.sha256,
            "license": model.licence,
            "license_note": model.note,
        }
    path = Path(source or "no source").expanduser()  # the path "" would be the current directory
    note = "See the licence of the source; pomona did not check it."
    if path.is_dir() or source.endswith(".gguf"):
        if not path.exists():
            raise PomonaError(f"{source}: there is no such file; check the path")
        kind = "directory" if path.is_dir() else "gguf"
        return {"version": 1, "kind": kind, "source": path.resolve().name, "license_note": note}
    if is_hub_id(source):
        return {"version": 1, "kind": "hub", "source": source, "license_note": note}
    raise PomonaError(
        f"{source}: is no built-in model ({', '.join(BUILTIN)}), .gguf file, directory or hub id (org/name); "
        "check the spelling"
    )


def _default_name(source: str) -> str:
    return source if source in BUILTIN else Path(source).expanduser().resolve().name.removesuffix(".gguf")


def _provenance(directory: Path) -> dict[str, Any]:
    path = directory / PROVENANCE_FILE
    return read_json_object(path) if path.is_file() else {}


def _import_gguf(file: Path, writer: ModelDirectoryWriter, progress: Progress | None) -> None:
    """Import into the writer's directory, through a folder in it: an import makes a directory of its own."""
    from pomona.models.import_gguf import import_gguf

    with tempfile.TemporaryDirectory(dir=writer.path) as work:
        inner = Path(work).resolve() / "model"
        try:
            import_gguf(file, inner, progress=progress)
        except PomonaError as error:  # of the two places, the user knows one
            raise PomonaError(str(error).replace(str(inner), str(writer.target))) from error
        for path in inner.iterdir():
            path.rename(writer.path / path.name)
