"""Words that hint at a kind of harm: category tags for texts that carry none.

    lexicon().tags("A phishing e-mail asked for my password.")      # ("cybercrime.phishing",)

Three users: prompts of a set without categories (prompt_sets.py), documents of pre-training (tagging.py), and
the words that a summary must not bring in by itself (amplification.py). A hint is no verdict.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pomona.data.ngrams import plain_words
from pomona.safety.taxonomy import taxonomy

FILE = Path(__file__).with_name("lexicon.yaml")


@dataclass(frozen=True)
class Hit:
    """An expression of the lexicon as it stands in a text, and the subcategory that it hints at."""

    tag: str
    words: str


@dataclass(frozen=True)
class Lexicon:
    """terms: subcategory -> expressions. A term that ends in `*` stands for all its endings."""

    terms: dict[str, tuple[str, ...]]

    def hits(self, text: str) -> list[Hit]:
        """What is found, in the order of the lexicon, each expression once."""
        joined = " ".join(plain_words(text))
        found: dict[tuple[str, str], Hit] = {}
        for tag, pattern in self._patterns():
            for match in pattern.finditer(joined):
                found.setdefault((tag, match[0]), Hit(tag, match[0]))
        return list(found.values())

    def tags(self, text: str) -> tuple[str, ...]:
        """Subcategories with a hit, those with the most words found first."""
        hits = self.hits(text)
        weight: dict[str, int] = {}
        for hit in hits:
            weight[hit.tag] = weight.get(hit.tag, 0) + len(hit.words.split())
        return tuple(sorted(weight, key=lambda tag: -weight[tag]))

    def _patterns(self) -> list[tuple[str, re.Pattern[str]]]:
        return _compiled(tuple(self.terms.items()))


@cache
def lexicon() -> Lexicon:
    """The lexicon that ships with pomona. Every tag is one of the taxonomy's."""
    import yaml

    raw = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return Lexicon({taxonomy().subcategory(tag).id: tuple(map(str, terms)) for tag, terms in raw.items()})


@cache
def _compiled(terms: tuple[tuple[str, tuple[str, ...]], ...]) -> list[tuple[str, re.Pattern[str]]]:
    found = []
    for tag, expressions in terms:
        choices = [
            re.escape(" ".join(plain_words(one.removesuffix("*")))) + (r"\w*" if one.endswith("*") else "")
            for one in expressions
        ]
        found.append((tag, re.compile(rf"\b(?:{'|'.join(choices)})\b")))
    return found
