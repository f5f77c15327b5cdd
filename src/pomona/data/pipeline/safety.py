"""Profane and unsafe pages, by word lists (AFM_REPORT 2.2 step 2). The lists are short; add your own.

The model-based half is a `classifier` step with a model that was trained on pages labelled for safety.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.writers.jsonl import JsonlWriter

from pomona.data.ngrams import plain_words
from pomona.data.pipeline.blocks import Filter, Verdict
from pomona.data.pipeline.recipe import Safety
from pomona.errors import PomonaError


def read_list(path: Path) -> list[str]:
    """Words and phrases of a file, one a line; `#` begins a remark."""
    try:
        return list(_entries(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise PomonaError(f"{path}: cannot be read as a list of words ({error}); correct `lists`") from error


def builtin_list(name: str) -> list[str]:
    return list(_entries(files("pomona.data").joinpath("texts", f"{name}.txt").read_text(encoding="utf-8")))


def _entries(text: str) -> Iterable[str]:
    for line in text.splitlines():
        if entry := " ".join(plain_words(line.partition("#")[0])):
            yield entry


class DropUnsafe(Filter):
    """Whole words are counted, phrases are looked for; case and punctuation do not matter.

    Removed: unsafe_phrase, profanity.
    """

    name = "safety"

    def __init__(
        self, settings: Safety, lists: Iterable[Path] = (), writer: JsonlWriter | None = None
    ) -> None:
        super().__init__(writer)
        self.settings = settings
        entries = [entry for path in lists for entry in read_list(path)]
        phrases = [" ".join(plain_words(phrase)) for phrase in settings.phrases]
        if settings.builtin:
            entries += builtin_list("profanity")
            phrases += builtin_list("unsafe_phrases")
        self.words = frozenset(entry for entry in entries if " " not in entry)
        # A phrase of a word list counts as profanity; one of the unsafe ones is enough by itself.
        self.profane_phrases = [f" {entry} " for entry in entries if " " in entry]
        self.phrases = [f" {phrase} " for phrase in phrases if phrase]

    def filter(self, doc: Document) -> Verdict:
        words = plain_words(doc.text)
        joined = f" {' '.join(words)} "
        if any(phrase in joined for phrase in self.phrases):
            return False, "unsafe_phrase"
        found = sum(word in self.words for word in words)
        found += sum(joined.count(phrase) for phrase in self.profane_phrases)
        if found > self.settings.max_profane_words or found > self.settings.max_profanity * len(words):
            return False, "profanity"
        return True
