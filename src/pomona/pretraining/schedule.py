"""The learning-rate schedule: linear warm-up, then half a cosine to a floor (AFM report, section 3.1)."""

from __future__ import annotations

import math


def schedule(step: int, *, steps: int, warm_up: int, floor: float) -> float:
    """The share of the peak, in [0, 1], at which update number `step` (from 0) of `steps` is made.

    As in AXLearn, the first update is already above zero: it has the share that belongs to step + 1. floor:
    the share at the end.
    """
    at = step + 1
    if at < warm_up:
        return at / warm_up
    if at >= steps:
        return floor
    turned = (at - warm_up) / (steps - warm_up)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * turned))
