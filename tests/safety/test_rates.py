"""Rates: Rogan and Gladen against arithmetic, and intervals that cover."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.evaluation.statistics import Share
from pomona.safety.rates import JudgeError


def test_a_perfect_judge_corrects_nothing() -> None:
    found = JudgeError(10**7, 10**7, 10**7, 10**7).corrected(30, 120)
    assert found is not None and found.value == 0.25
    assert (found.low, found.high) == pytest.approx(
        (Share.wilson(30, 120).low, Share.wilson(30, 120).high), abs=0.01
    )


def test_the_correction_takes_back_what_the_judge_adds() -> None:
    # 40% true, found with 90% and falsely with 20%: 48% are counted.
    found = JudgeError(90, 100, 80, 100).corrected(48, 100)
    assert found is not None and found.value == pytest.approx(0.4)
    assert found.low < 0.3 and found.high > 0.5  # wider than without the judge's error


def test_a_coin_corrects_nothing() -> None:
    assert JudgeError(50, 100, 50, 100).corrected(5, 10) is None
    assert JudgeError(90, 100, 80, 100).corrected(0, 0) is None
    assert JudgeError(0, 0, 1, 1).corrected(1, 2) is None


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), st.data())
def test_a_correction_is_a_share_within_its_interval(of: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, of))
    found = JudgeError(105, 113, 104, 112).corrected(count, of)
    assert found is not None and 0 <= found.low <= found.value <= found.high <= 1


@pytest.mark.parametrize("truth", [0.05, 0.3, 0.8])
def test_ninety_five_of_a_hundred_intervals_hold_the_truth(truth: float) -> None:
    """As Lang and Reiczigel (2014) claim, with judge and sample both drawn anew."""
    random = np.random.default_rng(3)
    se, sp, n = 0.94, 0.92, 150
    held = 0
    for _ in range(2000):
        error = JudgeError(random.binomial(113, se), 113, random.binomial(112, sp), 112)
        found = error.corrected(random.binomial(n, truth * se + (1 - truth) * (1 - sp)), n)
        assert found is not None
        held += found.low <= truth <= found.high
    assert held / 2000 > 0.93
