"""Profanity by its share of words, unsafe phrases by their presence; own lists are added."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

pytest.importorskip("datatrove")

from pipeline_samples import filtered, prose

from pomona.data.pipeline.recipe import Safety
from pomona.data.pipeline.safety import DropUnsafe, builtin_list
from pomona.errors import PomonaError


def test_profanity_is_a_matter_of_share_and_number() -> None:
    rng = random.Random(1)
    clean = prose(rng, 100)  # 1,200 words
    found = filtered(
        DropUnsafe(Safety()), [clean, clean + " shit", "What the fuck.", clean + " Damn. BULLSHIT!" * 7]
    )
    assert found == [(True, None), (True, None), (False, "profanity"), (False, "profanity")]


def test_whole_words_are_meant() -> None:
    text = "Scunthorpe and Penistone, the cockpit, a cocktail, Dickens, and the bass."
    assert filtered(DropUnsafe(Safety()), [text]) == [(True, None)]


def test_an_unsafe_phrase_is_enough() -> None:
    clean = prose(random.Random(2), 100)
    found = filtered(
        DropUnsafe(Safety(phrases=["blue moon"])), [f"{clean} How to make a BOMB", "a Blue, moon", "blue"]
    )
    assert found == [(False, "unsafe_phrase"), (False, "unsafe_phrase"), (True, None)]


def test_own_lists_are_added(tmp_path: Path) -> None:
    words = tmp_path / "w.txt"
    words.write_text("# my words\nFrumious  # a remark\nvery bad thing\n\n")
    block = DropUnsafe(Safety(builtin=False), [words])
    assert filtered(block, ["so frumious", "a very bad thing", "shit"]) == [
        (False, "profanity"),
        (False, "profanity"),
        (True, None),
    ]
    with pytest.raises(PomonaError, match="cannot be read as a list"):
        DropUnsafe(Safety(), [tmp_path / "none.txt"])


def test_the_lists_are_there() -> None:
    assert len(builtin_list("profanity")) > 40 and len(builtin_list("unsafe_phrases")) > 10
