"""Personal data in text: found by form, checked where a form can be checked, replaced by its kind.

AFM_REPORT 2.1: personal data is filtered from all sources. Found: e-mail addresses, telephone numbers, public
IP addresses, card numbers (Luhn), bank accounts (IBAN, modulo 97), US social security numbers, keys and
tokens. Not found: names and street addresses, which have no form.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass

from datatrove.data import Document
from datatrove.pipeline.writers.jsonl import JsonlWriter

from pomona.data.pipeline.blocks import Filter, Verdict
from pomona.data.pipeline.recipe import Pii


def _luhn(text: str) -> bool:
    digits = [int(c) for c in text if c.isdigit()]
    if digits[0] not in (3, 4, 5, 6) or len(set(digits)) == 1:
        return False
    doubled = [d if i % 2 == 0 else (2 * d - 9 if d > 4 else 2 * d) for i, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _iban(text: str) -> bool:
    packed = text.replace(" ", "").upper()
    if not 15 <= len(packed) <= 34:
        return False
    return int("".join(str(int(c, 36)) for c in packed[4:] + packed[:4])) % 97 == 1


def _public(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


@dataclass(frozen=True)
class Kind:
    """A kind of personal data: its form, and what else a match must be."""

    name: str
    pattern: re.Pattern[str]
    check: Callable[[str], bool] = lambda _: True


_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?"
_BRACKETED = r"\s?[\[({<]\s?(?:at|dot|@|\.)\s?[\])}>]\s?"
# Those with the strictest form first: what was replaced is not looked at again.
KINDS = (
    Kind(
        "secret",
        re.compile(
            r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[\s\S]{1,8000}?-----END [A-Z ]{0,30}PRIVATE KEY-----"
            r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36,80}\b|\bxox[abprs]-[A-Za-z0-9\-]{10,80}"
            r"|\bsk-[A-Za-z0-9_\-]{20,100}|\bAIza[0-9A-Za-z_\-]{35}\b"
            r"|\beyJ[A-Za-z0-9_\-]{10,2000}\.eyJ[A-Za-z0-9_\-]{10,2000}\.[A-Za-z0-9_\-]{10,2000}"
        ),
    ),
    Kind(
        "email",
        re.compile(
            rf"(?<![\w.+%\-])[\w.+%'\-]{{1,64}}@(?:{_LABEL}\.){{1,8}}[A-Za-z]{{2,24}}\b"
            rf"|(?<![\w.+%\-])[\w.+%\-]{{1,64}}{_BRACKETED}{_LABEL}(?:(?:\.|{_BRACKETED}){_LABEL}){{1,4}}\b"
        ),
    ),
    Kind(
        "iban",
        re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"),
        _iban,
    ),
    Kind(
        "card",
        re.compile(
            r"(?<![\w.\-])(?:\d{13,19}|\d{4}([ \-])\d{4}\1\d{4}\1\d{4}|\d{4}([ \-])\d{6}\2\d{5})(?![\w\-])"
        ),
        _luhn,
    ),
    Kind("ssn", re.compile(r"(?<![\w\-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w\-])")),
    Kind(
        "ip",
        re.compile(
            r"(?<![\w.\-])(?:\d{1,3}\.){3}\d{1,3}(?![\w\-]|\.\d)"
            r"|(?<![\w:.])(?:[0-9A-Fa-f]{1,4}:{1,2}){2,7}[0-9A-Fa-f]{0,4}(?![\w:])"
        ),
        _public,
    ),
    Kind(
        "phone",
        re.compile(
            r"(?<![\w+])\+\d{1,3}[\s.\-]?(?:\(\d{1,4}\)[\s.\-]?)?\d{1,4}(?:[\s.\-]?\d{2,4}){2,4}(?!\w)"
            r"|(?<![\w.\-/])(?:1[\s.\-])?(?:\(\d{3}\)\s?|\d{3}[\s.\-])\d{3}[\s.\-]\d{4}(?![\w\-])"
            r"|(?<![\w.\-/])0\d{2,4}[ \-]\d{3,4}[ \-]\d{3,4}(?![\w\-])"
        ),
    ),
)


def redact(text: str, kinds: Collection[str] | None = None) -> tuple[str, Counter[str]]:
    """`text` with personal data of these kinds (default: all) as [EMAIL] and so on, and how many."""
    counts: Counter[str] = Counter()
    for kind in KINDS:
        if kinds is None or kind.name in kinds:
            text, counts[kind.name] = _replace(text, kind)
    return text, +counts


def _replace(text: str, kind: Kind) -> tuple[str, int]:
    """All of one kind. What has the form and fails the check may hide another one that begins within it
    ("1990 4111 1111 1111 1111"), so the search goes on right behind its beginning."""
    pieces, end, place = [], 0, 0
    while (match := kind.pattern.search(text, place)) is not None:
        if not kind.check(match[0]):
            place = match.start() + 1
            continue
        pieces += [text[end : match.start()], f"[{kind.name.upper()}]"]
        end = place = match.end()
    return "".join((*pieces, text[end:])), len(pieces) // 2


class RemovePii(Filter):
    """Replaces personal data; a page that is full of it goes. What was replaced is counted, by kind, in the
    statistics and in `pii` of the document; the data itself is written nowhere. Removed: pii."""

    name = "pii"

    def __init__(self, settings: Pii, writer: JsonlWriter | None = None) -> None:
        super().__init__(writer)
        self.kinds = [kind.name for kind in KINDS if getattr(settings, kind.name)]
        self.max_items = settings.max_items

    def filter(self, doc: Document) -> Verdict:
        doc.text, counts = redact(doc.text, self.kinds)
        for kind, count in counts.items():
            self.stat_update(f"changed_{kind}", value=count)
        if counts:
            doc.metadata["pii"] = dict(counts)
        return counts.total() <= self.max_items or (False, "pii")
