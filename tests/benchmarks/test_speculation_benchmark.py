"""The prompts of the speculation benchmark: enough passages, errors as documented, answers as prescribed."""

from __future__ import annotations

import difflib

import numpy as np
import pytest

from benchmarks.speculation import ERRORS, PASSAGE, Prescribed, passages, with_errors
from pomona.data.builtin_text import evaluation_text

TEXTS = passages(evaluation_text())


def test_there_are_twenty_passages_or_more_of_whole_sentences() -> None:
    assert len(TEXTS) >= 20
    assert all(len(text) >= PASSAGE and text[-1] in ".!?" for text in TEXTS)
    assert " ".join(evaluation_text().split()).startswith(" ".join(TEXTS[0].split()))


def test_about_one_long_word_in_ten_has_an_error_and_nothing_else_changes() -> None:
    long, changed = 0, 0
    for number, text in enumerate(TEXTS):
        before, after = text.split(), with_errors(text, number).split()
        assert len(before) == len(after)
        for one, other in zip(before, after, strict=True):
            letters = max(map(len, "".join(c if c.isalpha() else " " for c in one).split()), default=0)
            long += letters >= 4
            changed += one != other
            if one != other:
                assert letters >= 4 and one[0] == other[0]
                edits = [
                    op for op in difflib.SequenceMatcher(None, one, other).get_opcodes() if op[0] != "equal"
                ]
                assert 1 <= len(edits) <= 2 and abs(len(one) - len(other)) <= 1
    # Two equal letters in the wrong order are no error: a few less than one in ten.
    assert 0.7 * ERRORS < changed / long < 1.3 * ERRORS


def test_the_same_seed_makes_the_same_errors() -> None:
    assert with_errors(TEXTS[0], 1) == with_errors(TEXTS[0], 1) != with_errors(TEXTS[0], 2)


def test_a_prescribed_answer_allows_one_token_at_every_place_and_lets_wrong_drafts_be_tried() -> None:
    answer = [5, 31, 32, 99]
    guide = Prescribed(answer, vocabulary=100)
    drafts, masks = guide.masks([31, 7, 7, 7, 7])
    assert drafts == [31, 7, 7], "no place lies beyond the answer"
    bits = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little")
    assert [row.nonzero()[0].tolist() for row in bits] == [[token] for token in answer]
    for token in answer:
        assert not guide.stopped
        assert np.array_equal(guide.mask(), guide.masks([])[1][0])
        guide.accept(token)
    assert guide.stopped


@pytest.mark.parametrize("text", ["", "One sentence that is too short."])
def test_what_is_too_short_makes_no_passage(text: str) -> None:
    assert passages(text) == []
