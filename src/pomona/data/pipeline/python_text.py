"""Text that comes with every Python: docstrings, packages' descriptions, and whose licence they are under."""

from __future__ import annotations

import inspect
import re
from functools import cache
from importlib.metadata import distributions
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from email.message import Message

_TRIPLE = re.compile(r"""(^[ \t]*[rRuU]?)?("{3}|'{3})(.*?)\2""", re.MULTILINE | re.DOTALL)
_SHORTEST = 80  # characters; below that a docstring is a label rather than prose
_CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "MIT No Attribution License (MIT-0)": "MIT-0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
    "zlib/libpng License": "Zlib",
}


def docstrings(source: str) -> str:
    """The longer docstrings of a Python file, in order, a blank line between them.

    Those are the triple-quoted strings that begin a line, found without parsing the program: of a hundred
    megabytes of source that takes seconds.
    """
    found = (inspect.cleandoc(match[3]) for match in _TRIPLE.finditer(source) if match[1] is not None)
    return "\n\n".join(text for text in found if len(text) >= _SHORTEST)


def package_description(metadata: str) -> str:
    """The description in a package's METADATA, which follows its headers; "" if there is none."""
    _, _, body = metadata.replace("\r\n", "\n").partition("\n\n")
    return body.strip()


@cache
def licenses_of_packages() -> dict[str, str]:
    """Folder or file in site-packages -> SPDX name of the licence, as far as the package names one."""
    found: dict[str, str] = {}
    for package in distributions():
        meta = cast("Message", package.metadata)  # which it is
        name = meta.get("License-Expression") or _of_classifiers(meta.get_all("Classifier") or [])
        if name is None and re.fullmatch(
            r"[A-Za-z0-9.+-]{2,30}", given := (meta.get("License") or "").strip()
        ):
            name = given
        if name is None:
            continue
        for file in package.files or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__", "bin"):
                found.setdefault(top, name)
    return found


def _of_classifiers(classifiers: list[str]) -> str | None:
    names = [line.rpartition(" :: ")[2] for line in classifiers if line.startswith("License :: ")]
    known = [_CLASSIFIERS[name] for name in names if name in _CLASSIFIERS]
    return " OR ".join(known) if known and len(known) == len(names) else None
