"""Gopher's repetition rules: datatrove's filter, with its slow part skipped where it cannot matter.

datatrove joins every 2- to 10-gram of a document as a string. Here n-grams are hashed all at once; the most
frequent one and an upper bound of what is repeated follow from the hashes, and datatrove's own count is made
only where the bound exceeds the threshold. Verdicts and reasons are datatrove's, but for texts with different
n-grams that read alike without spaces ("a bc", "ab c"; rows of dots), which it takes for one.
"""

from __future__ import annotations

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter, find_all_duplicate
from datatrove.pipeline.writers.jsonl import JsonlWriter
from datatrove.utils.text import split_into_words
from numpy.typing import NDArray

from pomona.data.ngrams import Hashes, ngram_hashes, word_hashes
from pomona.data.pipeline.blocks import Verdict
from pomona.data.pipeline.recipe import GopherRepetition
from pomona.data.pipeline.words import plain_words


class DropRepetitive(GopherRepetitionFilter):  # type: ignore[misc]
    """Removed: dup_line_frac, dup_para_frac, their _char_ forms, top_N_gram, duplicated_N_n_grams."""

    def __init__(self, settings: GopherRepetition, writer: JsonlWriter | None = None) -> None:
        super().__init__(
            dup_line_frac=settings.max_duplicate_lines,
            dup_para_frac=settings.max_duplicate_paragraphs,
            dup_line_char_frac=settings.max_duplicate_line_characters,
            dup_para_char_frac=settings.max_duplicate_paragraph_characters,
            exclusion_writer=writer,
            language=plain_words(),
        )
        # The base class then looks at lines and paragraphs alone.
        tops: tuple[tuple[int, float], ...] = self.top_n_grams  # type: ignore[has-type]
        duplicates: tuple[tuple[int, float], ...] = self.dup_n_grams  # type: ignore[has-type]
        self.tops = [(n, settings.ngrams * most) for n, most in tops]
        self.duplicates = [(n, settings.ngrams * most) for n, most in duplicates]
        self.top_n_grams = self.dup_n_grams = ()

    def filter(self, doc: Document) -> Verdict:
        verdict: Verdict = super().filter(doc)
        if verdict is not True:
            return verdict
        words = split_into_words(doc.text, self.language)
        hashes, lengths = word_hashes(words), np.array([len(word) for word in words], np.int64)
        size = len(doc.text)
        for n, most in self.tops:
            if top_characters(hashes, lengths, n) / size > most:
                return False, f"top_{n}_gram"
        least = min((most for _, most in self.duplicates), default=1.0)
        for n, most in self.duplicates:
            bound = repeated_at_most(hashes, lengths, n)
            if bound / size <= least:  # and with longer n-grams it only falls
                return True
            if bound / size > most and find_all_duplicate(words, n) / size > most:
                return False, f"duplicated_{n}_n_grams"
        return True


def top_characters(hashes: Hashes, lengths: NDArray[np.int64], n: int) -> int:
    """Characters in all occurrences of the most frequent n-gram, spaces within it included; the earliest one
    of several. hashes, lengths: of the words [W]."""
    grams = ngram_hashes(hashes, n)
    if len(grams) == 0:
        return 0
    _, first, counts = np.unique(grams, return_index=True, return_counts=True)
    most = counts.max()
    start = int(first[counts == most].min())
    return int(lengths[start : start + n].sum() + n - 1) * int(most)


def repeated_at_most(hashes: Hashes, lengths: NDArray[np.int64], n: int) -> int:
    """Characters of the words within n-grams that have occurred before: no count of repeated n-grams that
    do not overlap can exceed it."""
    grams = ngram_hashes(hashes, n)
    _, first = np.unique(grams, return_index=True)
    repeated = np.ones(len(grams), np.bool_)
    repeated[first] = False
    if not repeated.any():
        return 0
    edges = np.zeros(len(lengths) + 1, np.int64)
    [starts] = np.nonzero(repeated)
    np.add.at(edges, starts, 1)
    np.add.at(edges, starts + n, -1)
    return int(lengths[np.cumsum(edges)[:-1] > 0].sum())
