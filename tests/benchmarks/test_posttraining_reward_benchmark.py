"""The benchmark of the reward model: splits, the head's optimum, differences on the same pairs."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.posttraining_reward import RIDGE, apart, difference, fitted_head, length_report
from pomona.posttraining.preferences import LEVELS, Preference, Response
from pomona.posttraining.reward_report import report_of
from pomona.posttraining.training.reward_loss import SOFT_TARGETS


def pair(number: int, prompt: str) -> Preference:
    return Preference(
        number, ({"role": "user", "content": prompt},), Response("short"), Response("much longer"), LEVELS[0]
    )


def test_no_prompt_is_on_both_sides() -> None:
    rows = [pair(i, f"q{i % 6}") for i in range(12)]
    judged, rest = apart(rows, 3)
    assert len(judged) == 3
    assert not {row.prompt_key for row in judged} & {row.prompt_key for row in rest}
    assert len(rest) == 6  # the second halves of the three prompts are left out


def test_the_head_of_equal_pairs_has_the_gap_that_soft_labels_aim_at() -> None:
    """One feature, the same in all pairs: the optimum is where sigma(gap) - p + RIDGE gap / x^2 = 0."""
    x = 4.0
    states = np.zeros((8, 2, 1))
    states[:, 0, 0] = x
    for place, p in enumerate(SOFT_TARGETS):
        [head] = fitted_head(states, np.full(8, place), "soft")
        gap = head * x
        assert 1 / (1 + np.exp(-gap)) - p + RIDGE * gap / x**2 == pytest.approx(0.0, abs=1e-6)
    gaps = [
        float(fitted_head(states, np.zeros(8, int), labels)[0] * x) for labels in ("soft", "hard", "margin")
    ]
    assert gaps[0] < gaps[1] < gaps[2]


def test_a_difference_is_of_the_same_pairs() -> None:
    better = report_of(np.array([1.0] * 40), np.zeros(40), ["better"] * 40)
    worse = report_of(np.array([1.0, -1.0] * 20), np.zeros(40), ["better"] * 40)
    gain = difference(better, worse)
    assert gain.value == pytest.approx(0.5) and gain.low > 0.3
    same = difference(worse, worse)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_the_rule_without_a_model_prefers_the_shorter_response() -> None:
    report = length_report([pair(1, "q")])
    assert report.accuracy is not None and report.accuracy.value == 1.0
