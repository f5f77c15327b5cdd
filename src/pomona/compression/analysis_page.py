"""The analysis as one HTML file that needs nothing else: no network, no other file, no build.

The page's parts lie in compression/page/ and are joined here. Scripts and styles are admitted by their
hashes alone (Content-Security-Policy), so that nothing in a report could run even if it reached the document
as markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

ANALYSIS = ("solver.js", "page.js", "heatmap.js", "tables.js")  # the server's page has these as well
SCRIPTS = (*ANALYSIS, "alone.js")

# What could end the data's element, or a line in older JavaScript; JSON means the same by the escapes.
_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def page_part(name: str) -> str:
    """The text of a file of the page."""
    return files("pomona.compression").joinpath("page", name).read_text(encoding="utf-8")


def embed_json(value: Mapping[str, Any]) -> str:
    """JSON that may stand in a <script> element. ValueError for nan and infinity, which JSON has not."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).translate(_ESCAPES)


def render_page(data: Mapping[str, Any]) -> str:
    """The whole page, of `Analysis.to_json()`."""
    style = page_part("page.css")
    script = "\n".join(page_part(name) for name in SCRIPTS)
    parts = {
        "@STYLE_HASH@": _source_hash(style),
        "@SCRIPT_HASH@": _source_hash(script),
        "@STYLE@": style,
        "@SCRIPT@": script,
        "@DATA@": embed_json(data),
    }
    # One pass over the template: a mark that occurs in the data is data.
    pieces = re.split("(" + "|".join(map(re.escape, parts)) + ")", page_part("page.html"))
    return "".join(parts.get(piece, piece) for piece in pieces)


def _source_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
