"""Word n-grams as numbers: the same for the same words, and for nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.data.ngrams import ngram_hashes, plain_words, word_hashes


def test_words_are_lower_case_without_punctuation() -> None:
    assert plain_words("Don't PANIC -- it's 3.5 Ⅷ ﬁne!") == [
        "don",
        "t",
        "panic",
        "it",
        "s",
        "3",
        "5",
        "viii",
        "fine",
    ]
    assert plain_words(" .,;\n") == []


@settings(max_examples=40, deadline=None)
@given(words=st.lists(st.sampled_from("abcd"), max_size=30), n=st.integers(1, 6))
def test_two_n_grams_have_one_hash_just_when_they_are_the_same_words(words: list[str], n: int) -> None:
    hashes = ngram_hashes(word_hashes(words), n)
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    assert hashes.dtype == np.uint64 and len(hashes) == len(grams)
    assert len(set(hashes.tolist())) == len(set(grams))
    assert dict(zip(grams, hashes.tolist(), strict=True)) == dict(
        zip(grams[::-1], hashes.tolist()[::-1], strict=True)
    )


def test_length_order_and_place_tell_n_grams_apart() -> None:
    a, b = word_hashes(["x", "x", "y"]), word_hashes(["x", "y", "x"])
    assert ngram_hashes(a, 3)[0] != ngram_hashes(b, 3)[0]
    assert ngram_hashes(a, 1)[0] == ngram_hashes(b, 1)[0] not in ngram_hashes(a, 2)


def test_hashes_are_the_same_on_every_machine() -> None:
    assert word_hashes(["pomona"]).tolist() == [15783308566135039214]
    assert ngram_hashes(word_hashes(["a", "b"]), 2).tolist() == [12289260846849011614]


@pytest.mark.parametrize("words", [[], ["one"], ["half \ud800"]])
def test_few_words_and_odd_ones_are_no_trouble(words: list[str]) -> None:
    assert len(word_hashes(words)) == len(words) and len(ngram_hashes(word_hashes(words), 2)) == 0
