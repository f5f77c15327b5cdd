"""Edits: applied they give the corrected text; aligned they are what a reader would say."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.adapters import edits
from pomona.adapters.edits import Edit, apply_edits, text_edits, word_edits, words

TEXT = st.text(st.sampled_from(list("ab ab.,'\n-éX1")), max_size=60)


@settings(deadline=None)
@given(TEXT, TEXT)
def test_edits_give_the_corrected_text(text: str, corrected: str) -> None:
    found = text_edits(text, corrected)
    assert apply_edits(text, found) == corrected
    for edit in found:
        assert text[edit.start : edit.end] == edit.original != edit.replacement
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))


@settings(deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_any_two_texts_have_edits(text: str, corrected: str) -> None:
    assert apply_edits(text, text_edits(text, corrected)) == corrected


@settings(deadline=None)
@given(TEXT)
def test_equal_texts_have_none(text: str) -> None:
    assert text_edits(text, text) == []


@pytest.mark.parametrize(
    ("text", "corrected", "expected"),
    [
        ("I has a apple.", "I have an apple.", [("has", "have"), ("a", "an")]),
        ("I like it alot.", "I like it a lot.", [("alot", "a lot")]),
        ("the the cat", "the cat", [("the ", "")]),
        ("He go home", "He goes home.", [("go", "goes"), ("", ".")]),
        ("i am", "I am", [("i", "I")]),
        ("with out it", "without it", [("with out", "without")]),
    ],
)
def test_edits_are_those_of_a_reader(text: str, corrected: str, expected: list[tuple[str, str]]) -> None:
    assert [(edit.original, edit.replacement) for edit in text_edits(text, corrected)] == expected


def test_places_are_those_of_characters() -> None:
    assert text_edits("Él has two.", "Él had two.") == [Edit(3, 6, "has", "had")]


def test_word_edits_ignore_white_space() -> None:
    source = words("I has\na  apple.")
    assert word_edits(source, words("I have an apple.")) == {(1, 2, ("have",)), (2, 3, ("an",))}


def test_a_word_is_aligned_with_the_like_one() -> None:
    source = words("she walked quickly home")
    assert word_edits(source, words("she quikly walked home")) != set()
    assert (1, 2, ("walks",)) in word_edits(source, words("she walks quickly to her home"))


def test_long_texts_fall_back_to_the_cheaper_alignment(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(f"word{i}" for i in range(60))
    changed = text.replace("word7 ", "word8 ").replace("word50", "")
    exact = text_edits(text, changed)
    monkeypatch.setattr(edits, "_MAX_CELLS", 10)
    cheap = text_edits(text, changed)
    assert apply_edits(text, cheap) == apply_edits(text, exact) == changed
