"""Rates that are corrected for the judge's own mistakes.

    JudgeError(107, 113, 104, 112).corrected(12, 80)

Rogan and Gladen (1978) correct a counted share p for a judge of known sensitivity
Se and specificity Sp: (p + Sp - 1) / (Se + Sp - 1); the interval is that of Lang and Reiczigel (2014), which
takes in that Se and Sp were estimated on finitely many labelled replies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pomona.evaluation.statistics import Z95, Share


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
    def sensitivity(self) -> Share:
        return Share.wilson(self.hits, self.positives)

    @property
    def specificity(self) -> Share:
        return Share.wilson(self.rejections, self.negatives)

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
