"""Krippendorff's alpha against the values that he and others have published."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pomona.errors import PomonaError
from pomona.evaluation.agreement import Level, alpha

# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C: four observers, twelve units.
FOUR = [
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
]
# Three coders and fifteen units; the example of the encyclopaedias.
THREE = [
    ". . . . . 3 4 1 2 1 1 3 3 . 3",
    "1 . 2 1 3 3 4 3 . . . . . . .",
    ". . 2 1 3 4 4 . 2 1 1 3 3 . 4",
]


def units(raters: Sequence[str]) -> list[list[int | None]]:
    rows = [[None if one == "." else int(one) for one in rater.split()] for rater in raters]
    return [list(unit) for unit in zip(*rows, strict=True)]


@pytest.mark.parametrize(
    ("raters", "level", "value"),
    [
        (FOUR, "nominal", 0.743),
        (FOUR, "ordinal", 0.815),
        (FOUR, "interval", 0.849),
        (THREE, "nominal", 0.691),
        (THREE, "interval", 0.811),
    ],
)
def test_published_values(raters: Sequence[str], level: Level, value: float) -> None:
    found = alpha(units(raters), level)
    assert found.value == pytest.approx(value, abs=5e-4)
    assert found.low <= found.value <= found.high


def test_what_only_one_has_rated_does_not_count() -> None:
    found = alpha(units(FOUR), "nominal")
    assert (found.units, found.ratings) == (11, 40)
    alone = alpha([*units(FOUR), [5, None, None, None]], "nominal")
    assert alone == found


def test_two_complete_raters_of_two_names_are_scotts_pi_corrected() -> None:
    rng = np.random.default_rng(1)
    a = rng.integers(0, 2, 60)
    b = np.where(rng.random(60) < 0.8, a, 1 - a)
    share = float(np.mean(np.concatenate([a, b])))
    pi = (np.mean(a == b) - (share**2 + (1 - share) ** 2)) / (1 - (share**2 + (1 - share) ** 2))
    n = 120
    found = alpha([list(pair) for pair in zip(a.tolist(), b.tolist(), strict=True)], "nominal")
    assert found.value == pytest.approx(1 - (1 - pi) * (n - 1) / n)
    assert found.same == pytest.approx(float(np.mean(a == b)))


def test_ranks_are_those_that_were_given_not_the_alphabet() -> None:
    order = ("poor", "fair", "good")
    near = [["poor", "fair"], ["good", "good"], ["fair", "fair"], ["poor", "poor"]]
    far = [["poor", "good"], ["good", "good"], ["fair", "fair"], ["poor", "poor"]]
    assert alpha(near, "ordinal", order).value > alpha(far, "ordinal", order).value
    numbers = [[order.index(one) for one in unit] for unit in near]
    assert alpha(near, "ordinal", order).value == pytest.approx(alpha(numbers, "ordinal").value)


def test_agreement_by_chance_is_nothing_and_contradiction_is_less() -> None:
    rng = np.random.default_rng(0)
    random = alpha(rng.integers(0, 3, (4000, 3)).tolist(), "nominal")
    assert abs(random.value) < 0.03 and random.low < 0 < random.high
    assert alpha([["a", "b"], ["b", "a"], ["a", "b"], ["b", "a"]], "nominal").value < 0
    assert alpha([["a", "a"], ["b", "b"]], "nominal").value == 1.0


@pytest.mark.parametrize("rated", [[], [["a", None]], [["a", "a"], ["a", "a"]]])
def test_where_it_is_not_defined_there_is_no_number(rated: list[Any]) -> None:
    found = alpha(rated, "nominal")
    assert math.isnan(found.value) and found.to_json()["value"] is None


def test_a_rating_that_is_none_is_refused() -> None:
    with pytest.raises(PomonaError, match="'splendid' is none of poor, good"):
        alpha([["poor", "splendid"]], "ordinal", ("poor", "good"))
    with pytest.raises(PomonaError, match="numbers"):
        alpha([["a", "b"]], "interval")
