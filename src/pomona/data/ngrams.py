"""Word n-grams as numbers: the common ground of de-duplication and decontamination.

A text is its lower-case words, without punctuation; a word is a 64-bit hash; an n-gram mixes its words'
hashes. All n-grams of a document are made at once. Shapes: W words, G = max(0, W - n + 1) n-grams.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_WORD = re.compile(r"\w+")
_ODD = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def plain_words(text: str) -> list[str]:
    """Lower-case words of `text` in composed form (NFKC); "Don't, 3.5" is don, t, 3, 5."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return _WORD.findall(text.lower())


def word_hashes(words: Sequence[str]) -> Hashes:
    """uint64 [W], the same on every machine."""
    from xxhash import xxh3_64_intdigest

    raw = "\n".join(words).encode("utf-8", "surrogatepass").split(b"\n") if words else []
    return np.fromiter(map(xxh3_64_intdigest, raw), np.uint64, len(words))


def ngram_hashes(hashes: Hashes, n: int) -> Hashes:
    """uint64 [G] of the n-grams of words with these hashes, in order; n-grams of different n never agree
    but by chance."""
    count = len(hashes) - n + 1
    if count < 1:
        return np.empty(0, np.uint64)
    with np.errstate(over="ignore"):
        total = np.full(count, np.uint64(n) * _ODD)
        for place in range(n):
            total = total * _ODD + hashes[place : place + count]
            total ^= total >> np.uint64(29)
        total = (total ^ (total >> np.uint64(30))) * _MIX_1
        total = (total ^ (total >> np.uint64(27))) * _MIX_2
        return total ^ (total >> np.uint64(31))
