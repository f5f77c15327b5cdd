"""Do graders agree? Krippendorff's alpha, with missing ratings, for names, ranks and numbers.

    units = [["good", "good", None], ["poor", "good", "fair"], ...]     # a row per thing that was rated
    alpha(units, "ordinal", ("poor", "fair", "good")).value

alpha is 1 - observed disagreement / disagreement expected of ratings drawn at random: 1 where all agree, 0
at chance, below it where people contradict each other. Krippendorff, "Computing Krippendorff's
Alpha-Reliability" (2011), whose symbols o_ck and n_c stand here for the coincidences and their sums. He takes
0.8 for reliable and 0.667 for the least from which tentative conclusions may be drawn.

Coincidences add up over units; that makes the bootstrap over units a matrix product.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pomona.errors import PomonaError
from pomona.evaluation.statistics import Floats, bootstrap, interval_json

Level = Literal["nominal", "ordinal", "interval"]
Unit = Sequence[Hashable | None]  # the ratings of one thing; None where a grader gave none


@dataclass(frozen=True)
class Agreement:
    """value: alpha, NaN where it is not defined (nothing was rated twice, or all ratings are the same).
    low, high: a bootstrap interval of 95% over units. same: the share of pairs of ratings of one unit that
    are equal. units, ratings: those that count, which is of units with two ratings or more."""

    level: Level
    value: float
    low: float
    high: float
    same: float
    units: int
    ratings: int

    def to_json(self) -> dict[str, Any]:
        return interval_json(self)


def alpha(units: Sequence[Unit], level: Level, values: Sequence[Hashable] | None = None) -> Agreement:
    """values: every rating that may occur, in their order; by default those that do, sorted.

    PomonaError: a rating that is none of them, or ratings that are no numbers at level "interval".
    """
    if values is None:
        values = sorted({one for unit in units for one in unit if one is not None})  # type: ignore[type-var]
    if level == "interval" and not all(isinstance(one, int | float) for one in values):
        raise PomonaError("agreement: interval ratings must be numbers; use ordinal for ranks")
    o_UCK, ratings = _coincidences(units, values)
    if not len(o_UCK):
        nan = float("nan")
        return Agreement(level, nan, nan, nan, nan, 0, 0)
    size = len(values)
    table = o_UCK.reshape(len(o_UCK), size * size)
    places = np.array([float(one) for one in values] if level == "interval" else [0.0] * size)  # type: ignore[arg-type]
    found = bootstrap(
        lambda weights: _alpha((weights @ table).reshape(-1, size, size), level, places), len(o_UCK)
    )
    total = o_UCK.sum(0)
    same = float(np.trace(total) / total.sum())
    return Agreement(level, found.value, found.low, found.high, same, len(o_UCK), ratings)


def _coincidences(units: Sequence[Unit], values: Sequence[Hashable]) -> tuple[Floats, int]:
    """o_uck: pairs of ratings c and k within unit u, each by 1 / (ratings of the unit - 1); their number."""
    number = {value: index for index, value in enumerate(values)}
    found, ratings = [], 0
    for unit in units:
        counts = np.zeros(len(values))
        for rating in unit:
            if rating is None:
                continue
            if rating not in number:
                raise PomonaError(
                    f"agreement: the rating {rating!r} is none of {', '.join(map(str, values))}"
                )
            counts[number[rating]] += 1
        if (given := counts.sum()) >= 2:
            found.append((np.outer(counts, counts) - np.diag(counts)) / (given - 1))
            ratings += int(given)
    return np.array(found), ratings


def _alpha(o_DCK: Floats, level: Level, places: Floats) -> Floats:
    """1 - (n - 1) sum o_ck d_ck / sum n_c n_k d_ck, for D tables of coincidences."""
    n_DC = o_DCK.sum(-1)
    if level == "nominal":
        d_DCK = np.broadcast_to(1.0 - np.eye(n_DC.shape[1]), o_DCK.shape)
    else:
        # Ranks lie as far apart as the ratings between them: their places are the middles of their ratings.
        at_DC = n_DC.cumsum(-1) - n_DC / 2 if level == "ordinal" else np.broadcast_to(places, n_DC.shape)
        d_DCK = (at_DC[:, :, None] - at_DC[:, None, :]) ** 2
    observed = (o_DCK * d_DCK).sum((1, 2))
    expected = (n_DC[:, :, None] * n_DC[:, None, :] * d_DCK).sum((1, 2))
    some = expected > 0
    return np.where(some, 1 - (n_DC.sum(-1) - 1) * observed / np.where(some, expected, 1), np.nan)
