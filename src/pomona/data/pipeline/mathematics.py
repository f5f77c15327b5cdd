"""Finding mathematics: tags and templates in pages, LaTeX commands and Unicode symbols in text.

AFM_REPORT 2.6 names a filter of tag templates, one of symbols, a quality classifier and reviewed domains; its
lists are not public, these are ours. The classifier is a step of its own.
"""

from __future__ import annotations

import re

from datatrove.data import Document
from datatrove.pipeline.writers.jsonl import JsonlWriter

from pomona.data.pipeline.blocks import Filter, Verdict
from pomona.data.pipeline.recipe import Mathematics

TAGS = re.compile(
    r"<math[\s>]|<annotation[^>]{0,40}tex|\bmathjax\b|\bkatex\b|application/x-tex|\btex2jax|asciimath"
    r"|class=[\"'][^\"'>]{0,60}\b(?:math|MathJax|mwe-math-[\w-]+|texhtml|latex|equation)\b"
    r"|alt=[\"']\s?(?:\$|\{?\\(?:displaystyle|frac|sum|int|begin))"
    r"|\\begin\{(?:equation|align|eqnarray|gather|multline|matrix|pmatrix|cases)\*?\}|\\\[|\\\(|\$\$",
    re.IGNORECASE,
)
COMMANDS = re.compile(
    r"\\(?:frac|sqrt|sum|prod|int|lim|infty|partial|nabla|alpha|beta|gamma|delta|epsilon|theta|lambda|mu|pi"
    r"|sigma|phi|omega|leq|geq|neq|approx|equiv|subset|cup|cap|forall|exists|in|to|mapsto|rightarrow|cdot"
    r"|times|ldots|mathbb|mathcal|mathbf|mathrm|operatorname|left|right|begin|end|overline|hat|vec|binom)\b"
)
# Arrows, operators, letterlike signs, mathematical alphabets, Greek letters that stand alone; what ordinary
# prose uses too (%, +, °) is not here.
SYMBOLS = re.compile(
    "[\u2200-\u22ff\u2a00-\u2aff\u27c0-\u27ef\u2980-\u29ff\u2190-\u2194\u21d0-\u21d4\u2102\u2115\u2119\u211a\u211d\u2124"
    "\U0001d400-\U0001d7ff\u00b1\u00d7\u00f7]|(?<!\\w)[\u0391-\u03c9](?!\\w)"
)


def count_tags(page: str) -> int:
    """Mathematical tags and templates in the source of a page."""
    return sum(1 for _ in TAGS.finditer(page))


def symbols_per_thousand(text: str) -> float:
    """LaTeX commands and mathematical symbols per thousand characters."""
    found = sum(1 for _ in COMMANDS.finditer(text)) + sum(1 for _ in SYMBOLS.finditer(text))
    return 1000 * found / max(1, len(text))


def is_mathematical(text: str, settings: Mathematics, *, tags: int = 0) -> bool:
    """Whether there are enough tags (`tags` of the page, and those in the text) or symbols."""
    return tags + count_tags(text) >= settings.min_tags or symbols_per_thousand(text) >= settings.min_symbols


class KeepMathematics(Filter):
    """Removed: not_mathematics; with `keep: other` mathematics."""

    name = "mathematics"

    def __init__(self, settings: Mathematics, writer: JsonlWriter | None = None) -> None:
        super().__init__(writer)
        self.settings = settings

    def filter(self, doc: Document) -> Verdict:
        tags = int(doc.metadata.get("math_tags", 0))
        found = is_mathematical(doc.text, self.settings, tags=tags)
        if self.settings.keep == "math":
            return found or (False, "not_mathematics")
        return (False, "mathematics") if found else True
