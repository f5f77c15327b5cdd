"""The licence filter for code: what a file's package or its own header says, as an SPDX expression."""

from __future__ import annotations

import re
from collections.abc import Collection

from datatrove.data import Document
from datatrove.pipeline.writers.jsonl import JsonlWriter

from pomona.data.pipeline.blocks import Filter, Verdict
from pomona.data.pipeline.recipe import CodeLicense

_HEAD = 4000  # characters of a file in which its licence stands, if anywhere
_TAG = re.compile(r"SPDX-License-Identifier:\s*([^\n\"'*#]{2,120})")
_TOKEN = re.compile(r"\(|\)|[A-Za-z0-9.+\-:]+")
# Words that only the text of one licence has; the stricter ones first, as a file may quote several.
_WORDINGS = (
    ("AGPL-3.0-or-later", re.compile(r"GNU\s+Affero\s+General\s+Public\s+License", re.IGNORECASE)),
    ("LGPL-2.1-or-later", re.compile(r"GNU\s+(?:Lesser|Library)\s+General\s+Public", re.IGNORECASE)),
    ("GPL-2.0-or-later", re.compile(r"GNU\s+General\s+Public\s+License", re.IGNORECASE)),
    ("MPL-2.0", re.compile(r"Mozilla\s+Public\s+License", re.IGNORECASE)),
    ("Apache-2.0", re.compile(r"Apache\s+License,?\s+Version\s+2\.0", re.IGNORECASE)),
    ("BSD-3-Clause", re.compile(r"Neither\s+the\s+name", re.IGNORECASE)),
    ("BSD-2-Clause", re.compile(r"Redistribution\s+and\s+use\s+in\s+source\s+and\s+binary", re.IGNORECASE)),
    ("MIT", re.compile(r"Permission\s+is\s+hereby\s+granted,\s+free\s+of\s+charge|\bMIT\s+License\b")),
)


def license_of_text(text: str) -> str | None:
    """The licence that the head of a file names, as an SPDX expression; None if it names none."""
    head = text[:_HEAD]
    if (found := _TAG.search(head)) is not None:
        return found[1].strip()
    joined = re.sub(r"[\n#*/\s]+", " ", head)
    return next((name for name, words in _WORDINGS if words.search(joined)), None)


def is_allowed(expression: str, allowed: Collection[str]) -> bool:
    """Whether an SPDX expression can be met with the licences `allowed` alone: one side of an OR is enough,
    an AND needs both, and WITH only adds permissions. What is no expression is not allowed."""
    tokens = _TOKEN.findall(expression)
    names = {name.lower() for name in allowed}
    place = 0

    def take() -> str:
        nonlocal place
        place += 1
        return tokens[place - 1] if place <= len(tokens) else ""

    def peek() -> str:
        return tokens[place].upper() if place < len(tokens) else ""

    def either(depth: int) -> bool:
        value = both(depth)
        while peek() == "OR":
            take()
            value = both(depth) or value
        return value

    def both(depth: int) -> bool:
        value = single(depth)
        while peek() == "AND":
            take()
            value = single(depth) and value
        return value

    def single(depth: int) -> bool:
        token = take()
        if token == "(":
            value = depth < 20 and either(depth + 1)
            return take() == ")" and value
        value = token.lower() in names
        if peek() == "WITH":
            take(), take()
        return value

    return bool(tokens) and either(0) and place == len(tokens)


class KeepLicensed(Filter):
    """Removed: license_unknown, license_not_allowed, programming_language."""

    name = "code_license"

    def __init__(self, settings: CodeLicense, writer: JsonlWriter | None = None) -> None:
        super().__init__(writer)
        self.settings = settings

    def filter(self, doc: Document) -> Verdict:
        wanted = self.settings.languages
        if wanted and doc.metadata.get("programming_language") not in wanted:
            return False, "programming_language"
        # A file that names its own licence knows better than the package that it came with.
        found = license_of_text(doc.text) or doc.metadata.get("license")
        if not isinstance(found, str):
            return False, "license_unknown"
        doc.metadata["license"] = found
        return is_allowed(found, self.settings.allow) or (False, "license_not_allowed")
