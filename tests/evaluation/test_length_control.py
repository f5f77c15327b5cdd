"""The length-controlled win rate against scikit-learn's fit, and where lengths explain all."""

from __future__ import annotations

import numpy as np
import pytest

from pomona.errors import PomonaError
from pomona.evaluation.length_control import RIDGE, fit, length_controlled

Case = tuple[np.ndarray, np.ndarray]


def sample(
    theta: float, phi: float, rows: int = 400, seed: int = 0
) -> tuple[list[float], list[int], list[int]]:
    rng = np.random.default_rng(seed)
    ours, theirs = rng.integers(100, 900, rows), rng.integers(100, 900, rows)
    longer = (ours - theirs).astype(float)
    p = 1 / (1 + np.exp(-(theta + phi * np.tanh(longer / longer.std()))))
    return (rng.random(rows) < p).astype(float).tolist(), ours.tolist(), theirs.tolist()


def test_the_fit_is_scikit_learns_with_half_wins_too() -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(2)
    x = rng.normal(size=90)
    y = rng.choice([0.0, 0.5, 1.0], 90)
    [theta], [phi] = fit(x, y, np.ones((1, 90)))
    # A win of a half is a row that was won once and lost once, each by half.
    theirs = LogisticRegression(C=1 / RIDGE, tol=1e-10, max_iter=1000).fit(
        np.concatenate([x, x])[:, None], np.repeat([1, 0], 90), sample_weight=np.concatenate([y, 1 - y])
    )
    assert theta == pytest.approx(theirs.intercept_[0], abs=1e-5)
    assert phi == pytest.approx(theirs.coef_[0, 0], abs=1e-5)


def test_many_weightings_are_fitted_as_each_alone() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=30), rng.choice([0.0, 1.0], 30)
    weights = rng.multinomial(30, np.full(30, 1 / 30), 8).astype(float)
    theta, phi = fit(x, y, weights)
    for row in range(8):
        alone = fit(x, y, weights[row : row + 1])
        assert (theta[row], phi[row]) == (
            pytest.approx(alone[0][0], abs=1e-6),
            pytest.approx(alone[1][0], abs=1e-6),
        )


def test_what_length_alone_has_won_is_taken_away() -> None:
    won, ours, theirs = sample(0.0, 3.0)
    longer = [value + 300 for value in ours]  # our answers grow, and nothing else
    raw = np.mean([(a > b) for a, b in zip(longer, theirs, strict=True)])
    gamed = [1.0 if a > b else 0.0 for a, b in zip(longer, theirs, strict=True)]
    controlled, phi = length_controlled(gamed, longer, theirs)
    assert raw > 0.75 and phi > 2
    assert controlled.value < raw - 0.15
    fair, _ = length_controlled(won, ours, theirs)
    assert fair.low < 0.5 < fair.high


def test_where_length_says_nothing_the_win_rate_stays() -> None:
    won, ours, theirs = sample(0.8, 0.0)
    controlled, phi = length_controlled(won, ours, theirs)
    assert controlled.value == pytest.approx(np.mean(won), abs=0.03) and abs(phi) < 0.5
    same, phi = length_controlled(won, [5] * 400, [5] * 400)
    assert same.value == pytest.approx(np.mean(won), abs=1e-6) and phi == 0.0


@pytest.mark.parametrize(("won", "value"), [([1.0, 1.0, 1.0], 1.0), ([0.0, 0.0, 0.0], 0.0)])
def test_a_clean_sweep_stays_one(won: list[float], value: float) -> None:
    controlled, _ = length_controlled(won, [10, 20, 30], [30, 20, 11])
    assert (controlled.value, controlled.low, controlled.high) == (value, value, value)


def test_turns_of_one_question_are_drawn_together() -> None:
    won, ours, theirs = sample(0.3, 0.5, rows=60)
    alone, _ = length_controlled(won, ours, theirs)
    twice, _ = length_controlled(won * 2, ours * 2, theirs * 2, [*range(60), *range(60)])
    assert twice.rows == 60 and alone.rows == 60
    assert twice.high - twice.low == pytest.approx(alone.high - alone.low, rel=0.25)
    with pytest.raises(PomonaError, match="same number"):
        length_controlled([1.0], [1, 2], [1])
