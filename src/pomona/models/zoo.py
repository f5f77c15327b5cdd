"""The adapters that come with pomona: small trained ones, each for exactly one base.

    entry = zoo.find(fingerprint, "recovery")

They lie in zoo/MODEL/ADAPTER/ at the root of a source checkout, or inside the installed package. The variable
POMONA_ZOO names another place. Nothing is fetched. An entry belongs to the base whose fingerprint stands in
its pomona.json; MODEL is what people call that base.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pomona.errors import PomonaError
from pomona.models.model_directory import PROVENANCE_FILE, read_json_object

VARIABLE = "POMONA_ZOO"
MARK = "README.md"  # without it, a folder named zoo is somebody else's
PREFIX = "zoo:"  # how an entry is named where a source is asked for


@dataclass(frozen=True)
class ZooEntry:
    """An adapter of the zoo: a PEFT directory with a pomona.json."""

    model: str
    name: str
    path: Path
    base_fingerprint: str


def folder() -> Path | None:
    """Where the zoo is on this machine; None where pomona was installed without one.

    PomonaError when POMONA_ZOO names no folder.
    """
    if named := os.environ.get(VARIABLE):
        place = Path(named).expanduser()
        if not place.is_dir():
            raise PomonaError(f"{VARIABLE}={named}: is no folder; correct it, or unset it")
        return place
    package = Path(__file__).resolve().parents[1]
    for place in (package / "zoo", package.parents[1] / "zoo"):
        if (place / MARK).is_file():
            return place
    return None


def entries() -> tuple[ZooEntry, ...]:
    """All adapters of the zoo, by model and name. PomonaError for one that does not name its base."""
    place = folder()
    if place is None:
        return ()
    return tuple(
        ZooEntry(model.name, adapter.name, adapter, _made_for(adapter))
        for model in _folders(place)
        for adapter in _folders(model)
    )


def find(base_fingerprint: str, name: str) -> ZooEntry | None:
    """The zoo's adapter `name` for exactly this base, if there is one."""
    return next((e for e in entries() if e.name == name and e.base_fingerprint == base_fingerprint), None)


def _folders(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith("."))


def _made_for(adapter: Path) -> str:
    mark = read_json_object(adapter / PROVENANCE_FILE).get("base_fingerprint")
    if not isinstance(mark, str) or not mark:
        raise PomonaError(
            f"{adapter / PROVENANCE_FILE}: has no base_fingerprint, which every adapter of the zoo needs; "
            "get the file again"
        )
    return mark
