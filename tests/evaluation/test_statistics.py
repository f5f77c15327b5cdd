"""Intervals and tests against SciPy's, published tables, and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pomona.errors import PomonaError
from pomona.evaluation.statistics import (
    Share,
    bootstrap,
    mean_interval,
    paired_difference,
    ratio_interval,
    sign_test,
)


@pytest.mark.parametrize(
    ("count", "of", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_wilsons(count: int, of: int, low: float, high: float) -> None:
    share = Share.wilson(count, of)
    assert (share.low, share.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 400).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of))))
def test_the_interval_is_scipys_symmetric_and_holds_the_value(case: tuple[int, int]) -> None:
    count, of = case
    share, other = Share.wilson(count, of), Share.wilson(of - count, of)
    assert share.value is not None and 0.0 <= share.low <= share.value <= share.high <= 1.0
    assert share.low == pytest.approx(1 - other.high, abs=1e-12)
    theirs = stats.binomtest(count, of).proportion_ci(method="wilson")
    assert (share.low, share.high) == (
        pytest.approx(theirs.low, abs=1e-12),
        pytest.approx(theirs.high, abs=1e-12),
    )


def test_no_votes_say_nothing() -> None:
    share = Share.of_all([])
    assert share == Share.wilson(0, 0)
    assert (share.value, share.low, share.high) == (None, 0.0, 1.0)


@pytest.mark.parametrize("case", [(-1, 3), (4, 3)])
def test_a_count_beyond_all_is_refused(case: tuple[int, int]) -> None:
    with pytest.raises(PomonaError, match=r"0 \.\. of"):
        Share.wilson(*case)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 300), st.integers(0, 300))
def test_the_sign_test_is_scipys(wins: int, losses: int) -> None:
    theirs = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(theirs, rel=1e-9)
    assert sign_test(wins, losses) == sign_test(losses, wins)


def test_the_sign_test_knows_large_counts() -> None:
    assert 0.0 < sign_test(5200, 4800) == pytest.approx(stats.binomtest(5200, 10000).pvalue, rel=1e-9)


def test_the_bootstrap_of_a_mean_is_scipys() -> None:
    values = np.random.default_rng(3).normal(size=120) ** 2
    ours = mean_interval(list(values))
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.value == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.06 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.06 * width)


def test_a_paired_difference_knows_that_rows_belong_together() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(size=80)  # how hard a question is, for both alike
    a, b = hard + 0.2 + 0.1 * rng.normal(size=80), hard + 0.1 * rng.normal(size=80)
    found = paired_difference(list(a), list(b))
    assert found.low > 0.1 and found.high < 0.3
    exact = stats.ttest_rel(a, b).confidence_interval()
    assert found.low == pytest.approx(exact.low, abs=0.02) and found.high == pytest.approx(
        exact.high, abs=0.02
    )


def test_a_ratio_weighs_rows_by_their_size() -> None:
    assert ratio_interval([1, 9], [2, 10]).value == pytest.approx(10 / 12)
    assert math.isnan(ratio_interval([0.0], [0.0]).value)


def test_draws_without_a_value_are_left_out_and_the_seed_repeats() -> None:
    def sometimes(weights: np.ndarray) -> np.ndarray:
        return np.where(weights[:, 0] > 0, weights @ np.arange(20.0) ** 2 / weights.sum(1), np.nan)

    found = bootstrap(sometimes, 20)
    assert math.isfinite(found.low) and found.low < found.value < found.high
    assert found == bootstrap(sometimes, 20) != bootstrap(sometimes, 20, seed=1)
    with pytest.raises(PomonaError, match="no rows"):
        mean_interval([])
