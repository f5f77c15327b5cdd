"""Long texts in pieces: within the limit, at good borders, and nothing is lost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.features.chunks import join, split


def letters(text: str) -> int:
    return len(text.encode())


TEXT = st.lists(
    st.sampled_from(["word", "a", " ", "\n", "\n\n", ". ", "é", "! ", "longerword"]), max_size=60
).map("".join)


@settings(deadline=None)
@given(TEXT, st.integers(4, 60))
def test_nothing_is_lost_and_every_piece_fits(text: str, limit: int) -> None:
    chunks = split(text, letters, limit)
    assert join(chunks) == (text if text.strip() else "")
    assert all(0 < letters(chunk.text) <= limit for chunk in chunks)
    assert all(chunk.text == chunk.text.strip() for chunk in chunks)
    assert all(not (chunk.before + chunk.after).strip() for chunk in chunks)


def test_paragraphs_come_first_then_sentences_then_words() -> None:
    text = "One two. Three four.\n\nFive six. Seven."
    assert [chunk.text for chunk in split(text, letters, 20)] == ["One two. Three four.", "Five six. Seven."]
    assert [chunk.text for chunk in split(text, letters, 12)] == [
        "One two.",
        "Three four.",
        "Five six.",
        "Seven.",
    ]
    assert [chunk.text for chunk in split("alpha beta gamma", letters, 11)] == ["alpha beta", "gamma"]


def test_a_short_text_is_one_piece() -> None:
    [only] = split("  Hello.\n", letters, 100)
    assert (only.before, only.text, only.after) == ("  ", "Hello.", "\n")


def test_other_texts_can_stand_in_the_place_of_the_pieces() -> None:
    chunks = split("a b\n\nc", letters, 3)
    assert join(chunks, ["A", "C"]) == "A\n\nC"


@pytest.mark.parametrize("text", ["", " \n\t "])
def test_white_space_alone_has_no_pieces(text: str) -> None:
    assert split(text, letters, 10) == []
