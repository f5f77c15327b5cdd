"""Statistics of comparisons: parts with intervals, exact tests of pairs, bootstrap intervals.

    Share.wilson(31, 50)                    # 31 wins of 50, with Wilson's interval of 95%
    sign_test(31, 12)                       # are 31 wins against 12 losses chance?
    mean_interval([0.5, 1.0, 0.0])          # a mean over questions, which are drawn again
    paired_difference(ours, theirs)         # of the same questions

What a bootstrap draws is a row: a question with all that was said about it, so that answers to one question
are never taken for independent ones. numpy and the standard library are enough here; the tests hold every
function against SciPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pomona.adapters.metrics import Interval
from pomona.errors import PomonaError

Floats = NDArray[np.float64]
Z95 = 1.959963984540054  # the normal quantile of 97.5%
DRAWS = 2000


@dataclass(frozen=True)
class Share:
    """`count` of `of` with its interval of 95% (Wilson 1927, without continuity correction)."""

    count: int
    of: int
    low: float
    high: float

    @classmethod
    def wilson(cls, count: int, of: int) -> Share:
        """The interval is all of 0 .. 1 where nothing was counted."""
        if not 0 <= count <= of:
            raise PomonaError(f"share: {count} of {of} is none; count must lie in 0 .. of")
        if of == 0:
            return cls(0, 0, 0.0, 1.0)
        p, z2 = count / of, Z95 * Z95
        centre = (p + z2 / (2 * of)) / (1 + z2 / of)
        half = Z95 * math.sqrt(p * (1 - p) / of + z2 / (4 * of * of)) / (1 + z2 / of)
        # At 0 and at all the interval ends there; rounding must not leave it a little inside.
        return cls(
            count,
            of,
            0.0 if count == 0 else max(centre - half, 0.0),
            1.0 if count == of else min(centre + half, 1.0),
        )

    @classmethod
    def of_all(cls, found: Iterable[bool]) -> Share:
        flags = list(found)
        return cls.wilson(sum(flags), len(flags))

    @property
    def value(self) -> float | None:
        return self.count / self.of if self.of else None

    def to_json(self) -> dict[str, Any]:
        return {"count": self.count, "of": self.of, "value": self.value, "low": self.low, "high": self.high}


def sign_test(wins: int, losses: int) -> float:
    """The p-value, two-sided and exact, of `wins` against `losses` if both were equally likely. Ties are left
    out by the caller (Dixon and Mood 1946). 1 where there are none of either."""
    if wins < 0 or losses < 0:
        raise PomonaError(f"sign test: {wins} wins and {losses} losses are none; give counts")
    total = wins + losses
    ways = tail = 1  # in which 0 of them are wins, 1 of them, ...: whole numbers, which do not round
    for count in range(min(wins, losses)):
        ways = ways * (total - count) // (count + 1)
        tail += ways
    return min(1.0, 2 * tail / (1 << total))


def bootstrap(
    statistic: Callable[[Floats], Floats], rows: int, *, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """The percentile interval of 95% of a statistic of weighted rows (Efron 1979).

    statistic([draws, rows]) -> [draws]: its values, where row i counts w[d, i] times. A draw in which it is
    NaN (nobody disagrees about anything) is left out. PomonaError: no rows.
    """
    if rows < 1:
        raise PomonaError("bootstrap: no rows to measure on; give some")
    value = float(statistic(np.ones((1, rows)))[0])
    if math.isnan(value):
        return Interval(math.nan, math.nan, math.nan, rows)
    counts = np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), draws)
    drawn = statistic(counts.astype(np.float64))
    low, high = np.percentile(drawn[~np.isnan(drawn)], [2.5, 97.5])
    return Interval(value, float(low), float(high), rows)


def ratio_interval(above: Sequence[float], below: Sequence[float], *, seed: int = 0) -> Interval:
    """sum(above) / sum(below), where row i gives above[i] and below[i]: a mean over rows of unlike size."""
    a, b = np.asarray(above, np.float64), np.asarray(below, np.float64)

    def ratio(weights: Floats) -> Floats:
        sums = weights @ b
        return np.where(sums > 0, weights @ a / np.where(sums > 0, sums, 1), np.nan)

    return bootstrap(ratio, len(a), seed=seed)


def mean_interval(values: Sequence[float], *, seed: int = 0) -> Interval:
    return ratio_interval(values, [1.0] * len(values), seed=seed)


def paired_difference(ours: Sequence[float], theirs: Sequence[float], *, seed: int = 0) -> Interval:
    """The mean of ours - theirs; row i is the same question in both (Koehn 2004)."""
    if len(ours) != len(theirs):
        raise PomonaError(f"difference: {len(ours)} and {len(theirs)} rows cannot be paired; use the same")
    return mean_interval([a - b for a, b in zip(ours, theirs, strict=True)], seed=seed)


def interval_json(interval: object) -> dict[str, Any]:
    """The fields of an interval; numbers that are none become null."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in vars(interval).items()
    }
