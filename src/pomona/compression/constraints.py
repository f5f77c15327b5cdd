"""Constraint files: modules whose bits the user has chosen, whatever the allocation would say.

    {"version": 1, "pins": {"model.layers.0.mlp.down_proj": 4, "*.v_proj": 8}}

Keys are module names or patterns with *, ? and [...]; of several that fit a module, the last one counts.
The same as YAML, where the name ends in .yaml or .yml. The page of `pomona inspect --report` writes them.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pomona.compression.packing import WIDTHS
from pomona.errors import PomonaError
from pomona.models.model_directory import read_json_object


def read_constraints(path: Path | str, modules: Collection[str]) -> dict[str, int]:
    """Module -> bits. PomonaError: unknown keys, a pattern that fits no module, bits that do not exist."""
    raw = _read(Path(path))
    if raw.get("version") != 1 or set(raw) != {"version", "pins"} or not isinstance(raw["pins"], dict):
        raise PomonaError(f'{path}: must be {{"version": 1, "pins": {{MODULE: BITS}}}} and nothing else')
    return pinned(raw["pins"], modules, str(path))


def pinned(pins: Mapping[Any, object], modules: Collection[str], where: str) -> dict[str, int]:
    """Resolves patterns against the modules of a model."""
    result: dict[str, int] = {}
    for pattern, bits in pins.items():
        if not isinstance(pattern, str) or type(bits) is not int or bits not in WIDTHS:
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


def _read(path: Path) -> dict[str, Any]:
    if path.suffix not in (".yaml", ".yml"):
        return read_json_object(path)
    try:
        yaml = importlib.import_module("yaml")
    except ImportError as error:
        raise PomonaError(f"{path}: reading YAML needs `pip install pyyaml`; or write it as JSON") from error
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        what = " ".join(str(error).split())
        raise PomonaError(f"{path}: cannot be read as YAML ({what}); correct it") from error
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise PomonaError(f"{path}: must be a mapping with version and pins")
    return raw
