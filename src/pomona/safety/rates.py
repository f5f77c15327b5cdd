"""Rates with intervals: as counted, and corrected for the judge's own mistakes.

    Rate.wilson(12, 80)                          # 15%, with its interval of 95%
    JudgeError(107, 113, 104, 112).corrected(12, 80)

Wilson (1927) for counts. Rogan and Gladen (1978) correct a counted share p for a judge of known sensitivity
Se and specificity Sp: (p + Sp - 1) / (Se + Sp - 1); the interval is that of Lang and Reiczigel (2014), which
takes in that Se and Sp were estimated on finitely many labelled replies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Z95 = 1.959963984540054  # the normal quantile of 97.5%


@dataclass(frozen=True)
class Rate:
    """value: None where nothing was counted."""

    count: int
    of: int
    low: float
    high: float

    @classmethod
    def wilson(cls, count: int, of: int) -> Rate:
        if of == 0:
            return cls(0, 0, 0.0, 1.0)
        p, z2 = count / of, Z95 * Z95
        centre = (p + z2 / (2 * of)) / (1 + z2 / of)
        half = Z95 * math.sqrt(p * (1 - p) / of + z2 / (4 * of * of)) / (1 + z2 / of)
        # At none and at all the interval ends there; rounding must not leave it a little inside.
        low = 0.0 if count == 0 else max(centre - half, 0.0)
        return cls(count, of, low, 1.0 if count == of else min(centre + half, 1.0))

    @classmethod
    def of_all(cls, found: Iterable[bool]) -> Rate:
        flags = list(found)
        return cls.wilson(sum(flags), len(flags))

    @property
    def value(self) -> float | None:
        return self.count / self.of if self.of else None

    def to_json(self) -> dict[str, Any]:
        return {"count": self.count, "of": self.of, "value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Corrected:
    """A share after correction, cut to 0 .. 1, with its interval of 95%."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class JudgeError:
    """hits of `positives` replies that people call a compliance, rejections of `negatives` that they do not.
    source: whose labels."""

    hits: int
    positives: int
    rejections: int
    negatives: int
    source: str = ""

    @property
    def sensitivity(self) -> Rate:
        return Rate.wilson(self.hits, self.positives)

    @property
    def specificity(self) -> Rate:
        return Rate.wilson(self.rejections, self.negatives)

    def corrected(self, count: int, of: int) -> Corrected | None:
        """None: nothing was counted, or the judge is no better than a coin."""
        if not (of and self.positives and self.negatives):
            return None
        se, sp = self.hits / self.positives, self.rejections / self.negatives
        if se + sp <= 1:
            return None
        value = (count / of + sp - 1) / (se + sp - 1)
        # The interval's own estimates, drawn towards the middle by a few made-up observations.
        z2 = Z95 * Z95
        n, n_se, n_sp = of + z2, self.positives + 2, self.negatives + 2
        p, se, sp = (count + z2 / 2) / n, (self.hits + 1) / n_se, (self.rejections + 1) / n_sp
        if se + sp <= 1:
            return None
        centre = (p + sp - 1) / (se + sp - 1)
        shift = 2 * z2 * (centre * se * (1 - se) / n_se - (1 - centre) * sp * (1 - sp) / n_sp)
        spread = p * (1 - p) / n + centre**2 * se * (1 - se) / n_se + (1 - centre) ** 2 * sp * (1 - sp) / n_sp
        half = Z95 * math.sqrt(spread) / (se + sp - 1)
        value, low, high = (
            min(max(x, 0.0), 1.0) for x in (value, centre + shift - half, centre + shift + half)
        )
        return Corrected(value, min(low, value), max(high, value))

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "labelled": self.positives + self.negatives,
            "sensitivity": self.sensitivity.to_json(),
            "specificity": self.specificity.to_json(),
        }
