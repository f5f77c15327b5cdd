"""Soft-Top-K in float64 by two ways that are not ours, to hold ours against (docs/pruning.md).

`coda`: the rounds of coordinate ascent of Lei et al. 2023 (AFM report, section 3.4). `bisection`: the one
unknown of the closed form, found by halving an interval.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def coda(scores: Array, k: float, temperature: float, rounds: int = 20_000) -> Array:
    """lambda_i = exp((s_i + a + b_i) / e), a and b in turns. Until nothing changes."""
    b = np.zeros_like(scores)
    a = 0.0
    for _ in range(rounds):
        shifted = (scores + b) / temperature
        top = shifted.max()
        a = temperature * (np.log(k) - top - np.log(np.exp(shifted - top).sum()))
        before, b = b, np.minimum(-scores - a, 0.0)
        if np.array_equal(before, b):
            break
    found: Array = np.exp((scores + a + b) / temperature)
    return found


def bisection(scores: Array, k: float, temperature: float) -> Array:
    """min(1, exp((s_i + a) / e)) with the a at which the sum is k."""

    def mask(a: float) -> Array:
        found: Array = np.exp(np.minimum(scores + a, 0.0) / temperature)
        return found

    low, high = -scores.max() - 50 * temperature * max(len(scores), 1), -scores.min()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if mask(middle).sum() < k else (low, middle)
    return mask(high)
