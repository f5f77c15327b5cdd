"""A quick reader for plain command lines, because starting up is part of answering.

Typer builds a pydantic model of every option before it reads the first one, which costs a good part of the
second that `pomona run` has until its first token. `quick_arguments` reads the same declarations from the
command's signature and understands the ordinary forms: `--name value`, `--name=value`, flags, positional
arguments and `--`. At the first thing that is not ordinary (help, an unknown or repeated option, a value of
the wrong kind or out of range, an argument too many or too few) it gives up, and Typer reads the line again
and says what is to be said. It never decides that a line is wrong, and what it accepts means what it means to
Typer (a test compares the two).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FunctionType, NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo, OptionInfo

_INTEGER = re.compile(r"-?[0-9]{1,18}")
_DECIMAL = re.compile(r"-?[0-9]{1,18}(\.[0-9]{0,18})?")


class _UnusualError(Exception):
    """Something for Typer."""


def quick_arguments(command: Callable[..., None], words: Sequence[str]) -> dict[str, Any] | None:
    """The keyword arguments that `words` give to `command`, or None if Typer should read them."""
    options: dict[str, tuple[str, type, OptionInfo]] = {}
    places: list[tuple[str, type, ArgumentInfo]] = []
    for name, hint in get_type_hints(command, include_extras=True).items():
        if name == "return":
            continue
        kind, declaration, *_ = *get_args(hint), None, None
        if isinstance(declaration, OptionInfo):
            # Within Annotated, the first name stands in the place of the default.
            names = (declaration.default, *(declaration.param_decls or ()))
            if not all(isinstance(item, str) and item.startswith("-") for item in names):
                return None
            options.update(dict.fromkeys(names, (name, kind, declaration)))
        elif isinstance(declaration, ArgumentInfo):
            places.append((name, kind, declaration))
        else:
            return None
    try:
        found = _read(options, places, list(words))
    except _UnusualError:
        return None
    assert isinstance(command, FunctionType)
    code = command.__code__
    needed = code.co_varnames[: code.co_argcount - len(command.__defaults__ or ())]
    return found if all(name in found for name in needed) else None


def _read(
    options: dict[str, tuple[str, type, OptionInfo]],
    places: list[tuple[str, type, ArgumentInfo]],
    words: list[str],
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    plain: list[str] = []
    while words:
        word = words.pop(0)
        if word == "--":
            plain += words
            break
        if not word.startswith("-") or word == "-":
            plain.append(word)
            continue
        key, equals, value = word.partition("=")
        if key not in options or options[key][0] in found:
            raise _UnusualError
        name, kind, declaration = options[key]
        if kind is bool:
            if equals:
                raise _UnusualError
            found[name] = True
            continue
        if not equals:
            if not words or words[0].startswith("-"):
                raise _UnusualError
            value = words.pop(0)
        found[name] = _convert(value, kind, declaration)
    required = sum(1 for _, kind, _ in places if NoneType not in get_args(kind))
    if not required <= len(plain) <= len(places):
        raise _UnusualError
    for (name, kind, place), value in zip(places, plain, strict=False):
        found[name] = _convert(value, kind, place)
    return found


def _convert(value: str, kind: Any, declaration: OptionInfo | ArgumentInfo) -> Any:
    if NoneType in get_args(kind):
        kind = next(part for part in get_args(kind) if part is not NoneType)
    if kind is str:
        return value
    if kind is Path and value:
        return Path(value)
    if get_origin(kind) is Literal and value in get_args(kind):
        return value
    if (kind is int and _INTEGER.fullmatch(value)) or (kind is float and _DECIMAL.fullmatch(value)):
        number = kind(value)
        low, high = declaration.min, declaration.max
        if (low is None or number >= low) and (high is None or number <= high):
            return number
    raise _UnusualError
