"""Constraint files: modules whose bits the user has chosen, whatever the allocation would say.

    {"version": 1, "pins": {"model.layers.0.mlp.down_proj": 4, "*.v_proj": 8}}

Keys are module names or patterns with *, ? and [...]; of several that fit a module, the last one counts.
The page of
`pomona inspect --report` writes such a file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from pomona.compression.packing import WIDTHS
from pomona.errors import PomonaError
from pomona.models.model_directory import read_json_object


def read_constraints(path: Path | str, modules: Collection[str]) -> dict[str, int]:
    """Module -> bits. PomonaError: unknown keys, a pattern that fits no module, bits that do not exist."""
    raw = read_json_object(Path(path))
    if raw.get("version") != 1 or set(raw) != {"version", "pins"} or not isinstance(raw["pins"], dict):
        raise PomonaError(f'{path}: must be {{"version": 1, "pins": {{MODULE: BITS}}}} and nothing else')
    return pinned(raw["pins"], modules, str(path))


def pinned(pins: Mapping[str, object], modules: Collection[str], where: str) -> dict[str, int]:
    """Resolves patterns against the modules of a model."""
    result: dict[str, int] = {}
    for pattern, bits in pins.items():
        if type(bits) is not int or bits not in WIDTHS:
            raise PomonaError(
                f"{where}: {pattern!r}: {bits!r} bits; choose from {', '.join(map(str, WIDTHS))}"
            )
        fitting = [module for module in modules if fnmatchcase(module, pattern)]
        if not fitting:
            raise PomonaError(
                f"{where}: {pattern!r} fits no module that can be packed; "
                "`pomona inspect MODEL --tensors` lists their names"
            )
        result |= dict.fromkeys(fitting, bits)
    return result
