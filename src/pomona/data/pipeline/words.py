"""Words and sentences for datatrove's filters, by regular expressions.

datatrove takes spaCy for that, which is another large install; its thresholds do not need more than this.
Both run in linear time on any text. They do not suit languages that write no spaces.
"""

from __future__ import annotations

import re
from functools import cache

from datatrove.utils.word_tokenizers import WordTokenizer

_WORD = re.compile(r"\w+(?:['’.\-]\w+)*|(?<!\S)[^\w\s]+(?!\S)")
_BREAK = re.compile(r"(?<=[.!?…。！？])[\"'”’)\]]*\s+|\n+")


class PlainWords(WordTokenizer):  # type: ignore[misc]
    """Words (with inner apostrophes, hyphens and points) without the punctuation around them, and signs that
    stand alone; so shares of words mean what Gopher's authors counted, who split at white space. A sentence
    ends with its mark and white space behind it, or with its line."""

    def word_tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        return [text[start:end] for start, end in self.span_tokenize(text)]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        spans, start = [], 0
        for end in (*(found.end() for found in _BREAK.finditer(text)), len(text)):
            piece = text[start:end]
            if inner := piece.strip():
                first = start + piece.index(inner)
                spans.append((first, first + len(inner)))
            start = end
        return spans


@cache
def plain_words() -> PlainWords:
    """One for the whole process: datatrove remembers the words of the last texts by tokenizer."""
    return PlainWords()
