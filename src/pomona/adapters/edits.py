"""Edits between a text and its corrected form, found by aligning words.

`text_edits` gives character spans: applied to the text they give the corrected one, byte for byte.
`word_edits` looks at words and punctuation alone, for the metrics.

The alignment is Levenshtein's over tokens, with a substitution that costs less the more alike two words are
(as in ERRANT, Bryant et al. 2017, but by characters alone: no part of speech, no lemma). Adjacent insertions
and deletions, and a substitution next to one of them, make one edit ("alot" -> "a lot"); two substituted
words in a row are two edits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

_WORD = r"\w+(?:['’\-]\w+)*|[^\w\s]"
_WORDS = re.compile(_WORD)
_TOKENS = re.compile(rf"\s+|{_WORD}")
_MAX_CELLS = 1_000_000  # of the alignment's table; beyond it difflib's cheaper one is used


@dataclass(frozen=True)
class Edit:
    """`text[start:end]`, which is `original`, becomes `replacement`."""

    start: int
    end: int
    original: str
    replacement: str


def text_edits(text: str, corrected: str) -> list[Edit]:
    """Edits in order, white space included: `apply_edits(text, text_edits(text, corrected)) == corrected`."""
    source, target = _TOKENS.findall(text), _TOKENS.findall(corrected)
    starts = [0]
    for token in source:
        starts.append(starts[-1] + len(token))
    edits = []
    for i0, i1, j0, j1 in changes(source, target):
        edits.append(Edit(starts[i0], starts[i1], "".join(source[i0:i1]), "".join(target[j0:j1])))
    return edits


def apply_edits(text: str, edits: Sequence[Edit]) -> str:
    parts, at = [], 0
    for edit in edits:
        parts += [text[at : edit.start], edit.replacement]
        at = edit.end
    return "".join([*parts, text[at:]])


def words(text: str) -> list[str]:
    """Words and punctuation marks."""
    return _WORDS.findall(text)


def word_edits(source: Sequence[str], target: Sequence[str]) -> set[tuple[int, int, tuple[str, ...]]]:
    """{(first word, last + 1, replacement)}: of two corrections of one source, equal members are equal
    edits.
    """
    return {(i0, i1, tuple(target[j0:j1])) for i0, i1, j0, j1 in changes(source, target)}


def changes(source: Sequence[str], target: Sequence[str]) -> list[tuple[int, int, int, int]]:
    """[(i0, i1, j0, j1)]: source[i0:i1] became target[j0:j1], in order, at least one of the two not empty."""
    head = 0
    while head < min(len(source), len(target)) and source[head] == target[head]:
        head += 1
    tail = 0
    while tail < min(len(source), len(target)) - head and source[-1 - tail] == target[-1 - tail]:
        tail += 1
    middle, other = source[head : len(source) - tail], target[head : len(target) - tail]
    if len(middle) * len(other) > _MAX_CELLS:
        matcher = SequenceMatcher(None, middle, other, autojunk=False)
        found = [(i0, i1, j0, j1) for tag, i0, i1, j0, j1 in matcher.get_opcodes() if tag != "equal"]
    else:
        found = _merged(_steps(middle, other))
    return [(i0 + head, i1 + head, j0 + head, j1 + head) for i0, i1, j0, j1 in found]


def _steps(source: Sequence[str], target: Sequence[str]) -> list[str]:
    """The cheapest way from source to target: "=" kept, "s" substituted, "d" deleted, "i" inserted."""
    rows, columns = len(source) + 1, len(target) + 1
    cost = [[0.0] * columns for _ in range(rows)]
    for i in range(1, rows):
        cost[i][0] = float(i)
    for j in range(1, columns):
        cost[0][j] = float(j)
    unlike: dict[tuple[str, str], float] = {}
    for i in range(1, rows):
        a, row, above = source[i - 1], cost[i], cost[i - 1]
        for j in range(1, columns):
            b = target[j - 1]
            best = min(above[j], row[j - 1]) + 1.0
            step = unlike.get((a, b))
            if step is None:
                step = unlike[a, b] = _unlikeness(a, b)
            row[j] = min(best, above[j - 1] + step)
    steps = []
    i, j = rows - 1, columns - 1
    while i or j:
        if i and j:
            step = unlike[source[i - 1], target[j - 1]]
            if cost[i][j] == cost[i - 1][j - 1] + step:
                steps.append("s" if step else "=")
                i, j = i - 1, j - 1
                continue
        if i and cost[i][j] == cost[i - 1][j] + 1.0:
            steps.append("d")
            i -= 1
        else:
            steps.append("i")
            j -= 1
    return steps[::-1]


def _unlikeness(a: str, b: str) -> float:
    """0 for equal tokens, up to 1.75: a word is rather substituted by a like one than deleted and
    inserted.
    """
    if a == b:
        return 0.0
    if a.casefold() == b.casefold():
        return 0.25
    if a.isspace() != b.isspace() or a[0].isalnum() != b[0].isalnum():
        return 3.0  # a space is no word: never aligned
    return 0.5 + 1.25 * (1.0 - SequenceMatcher(None, a.casefold(), b.casefold(), autojunk=False).ratio())


def _merged(steps: Sequence[str]) -> list[tuple[int, int, int, int]]:
    result: list[list[int]] = []
    i = j = 0
    before = "="
    for step in steps:
        di, dj = int(step in "=sd"), int(step in "=si")
        if step != "=":
            if before == "=" or (before == step == "s"):
                result.append([i, i, j, j])
            result[-1][1], result[-1][3] = i + di, j + dj
        i, j, before = i + di, j + dj, step
    return [(a, b, c, d) for a, b, c, d in result]
