"""Long texts in pieces that a model can take: cut between paragraphs, else sentences, else words.

Nothing is lost: the pieces and what lies between them make the text again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_BORDERS = (
    re.compile(r"\n\s*\n\s*"),
    re.compile(r"\n+"),
    re.compile(r"(?<=[.!?…])[\"')\]]*\s+"),
    re.compile(r"\s+"),
)


@dataclass(frozen=True)
class Chunk:
    """A piece without white space around it, and what stood before it; the last one also has what follows."""

    text: str
    before: str = ""
    after: str = ""


def split(text: str, count: Callable[[str], int], limit: int) -> list[Chunk]:
    """Pieces of at most `limit` tokens by `count`, as long as possible; a word longer than that is cut.

    An empty text, or one of white space alone, has no pieces.
    """
    if not text.strip():
        return []
    spans = _merged(text, _spans(text, 0, len(text), count, limit, 0), count, limit)
    chunks = []
    at = 0
    for number, (start, end) in enumerate(spans):
        last = number == len(spans) - 1
        chunks.append(Chunk(text[start:end], text[at:start], text[end:] if last else ""))
        at = end
    return chunks


def join(chunks: Sequence[Chunk], texts: Sequence[str] | None = None) -> str:
    """The text again, or with `texts` in the place of the pieces."""
    given = [chunk.text for chunk in chunks] if texts is None else texts
    return "".join(chunk.before + text + chunk.after for chunk, text in zip(chunks, given, strict=True))


def _spans(
    text: str, start: int, end: int, count: Callable[[str], int], limit: int, level: int
) -> list[tuple[int, int]]:
    """Spans without white space at their ends, each within the limit."""
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    if start == end:
        return []
    # No tokenizer makes more tokens than bytes: short ones need no counting.
    if end - start <= limit // 4 or count(text[start:end]) <= limit:
        return [(start, end)]
    if level == len(_BORDERS):
        size = max(1, min(limit // 4, (end - start) // 2))
        cuts = list(range(start + size, end, size))
    else:
        cuts = [match.end() for match in _BORDERS[level].finditer(text, start, end)]
    result = []
    for a, b in zip([start, *cuts], [*cuts, end], strict=True):
        result += _spans(text, a, b, count, limit, min(level + 1, len(_BORDERS)))
    return result


def _merged(
    text: str, spans: list[tuple[int, int]], count: Callable[[str], int], limit: int
) -> list[tuple[int, int]]:
    """Neighbours put together as far as they fit."""
    result: list[tuple[int, int]] = []
    for start, end in spans:
        if result and count(text[result[-1][0] : end]) <= limit:
            result[-1] = (result[-1][0], end)
        else:
            result.append((start, end))
    return result
