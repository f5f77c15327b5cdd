"""The error model: reproducible, at its rates, with every kind, and always undone by the clean text."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from pomona.adapters.edits import words
from pomona.adapters.recipes.error_model import CLEAN, RATES, WORDS_PER_ERROR, corrupt

TEXT = (
    "However, she doesn't receive a letter from the library because it is closed on Monday. I have seen the "
    "children there, and they are interested in an old building. It was written in 1994 by many people "
    "without a lot of help, but it has become part of their city. You need to go into the house and take "
    "the book."
)
# A text for each kind, and whether a corruption of it is of that kind.
EXAMPLES = {
    "keyboard": "believing something",
    "misspelt": "definitely",
    "homophone": "their",
    "article": "I saw an apple there",
    "agreement": "she is",
    "tense": "they have gone",
    "preposition": "interested in",
    "quantity": "many",
    "punctuation": "don't",
    "case": "Monday",
    "doubled": "go to",
    "missing": "a part of the whole",
    "split": "something",
    "joined": "a lot",
}


def test_the_rates_are_shares() -> None:
    assert sum(share for share, _ in RATES.values()) == pytest.approx(0.98, abs=0.03)
    assert EXAMPLES.keys() == RATES.keys()


@pytest.mark.parametrize("kind", list(RATES))
def test_every_kind_has_places_in_its_text(kind: str) -> None:
    from pomona.adapters.recipes.error_model import _TOKEN

    tokens = _TOKEN.findall(EXAMPLES[kind])
    rng = random.Random(0)
    found = {
        "".join(change.get(i, token) for i, token in enumerate(tokens))
        for site in RATES[kind][1](tokens)
        for change in [{i: new(rng) if callable(new) else new for i, new in site.items()}]
    }
    assert found and EXAMPLES[kind] not in found


def test_the_same_seed_makes_the_same_mistakes() -> None:
    assert corrupt(TEXT, random.Random(5)) == corrupt(TEXT, random.Random(5))
    assert len({corrupt(TEXT, random.Random(seed)) for seed in range(20)}) > 12


def test_some_texts_are_left_clean() -> None:
    clean = sum(corrupt(TEXT, random.Random(seed)) == TEXT for seed in range(600)) / 600
    assert clean == pytest.approx(CLEAN, abs=0.05)
    assert all(corrupt(TEXT, random.Random(seed), clean=0.0) != TEXT for seed in range(50))


def test_there_is_about_one_error_in_so_many_words() -> None:
    from pomona.adapters.edits import word_edits

    source = words(TEXT)
    counts = [len(word_edits(words(corrupt(TEXT, random.Random(s), clean=0.0)), source)) for s in range(30)]
    expected = sum(token[0].isalpha() for token in source) / WORDS_PER_ERROR
    assert sum(counts) / 30 == pytest.approx(expected, rel=0.3)


def test_the_mistakes_are_of_many_kinds() -> None:
    from pomona.adapters.edits import text_edits

    seen: Counter[str] = Counter()
    for seed in range(60):
        for edit in text_edits(TEXT, corrupt(TEXT, random.Random(seed))):
            seen[edit.original] += 1
    assert {"there", "their", "doesn't", "receive", "in", "Monday", "an"} <= set(seen)
    assert max(seen.values()) < 0.2 * sum(seen.values())


@pytest.mark.parametrize("text", ["", "   ", "42", "?", "A", "Ünïcode wörds änd 漢字."])
def test_any_text_can_be_corrupted(text: str) -> None:
    for seed in range(20):
        corrupt(text, random.Random(seed))
