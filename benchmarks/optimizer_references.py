"""Two float64 references for the optimizer of the AFM report, neither written like it.

`adastar` follows the published description of AXLearn's `adastar_optimizer` (apple/axlearn,
common/optimizers.py, the docstring's "generalized algorithm") with all its switches, of which the report's
rule is one setting. `unrolled` is the report's rule without recursion: every average is a weighted sum over
all gradients so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Rule:
    """The arguments of `adastar_optimizer`; the defaults are those of `adastar_learner_config`."""

    learning_rate: float = 0.01
    gradient_ema_decay: float | None = None
    gradient_ema_debias: bool = False
    gradient_square_ema_decay: float = 0.95
    gradient_square_ema_debias: bool = True
    eps: float = 0.0
    eps_square: float = 1e-30
    raw_update_clipping_threshold: float | None = 1.0
    update_ema_decay: float | None = 0.95
    update_ema_debias: bool = False
    weight_decay: float = 3.16e-4
    scale: float = 1.0  # of the update, between its two stages: muParam


def adastar(start: Array, gradients: Sequence[Array], schedule: Callable[[int], float], rule: Rule) -> Array:
    """The weights after all gradients; `schedule` is asked for counts from 1, as there."""
    w = start.astype(np.float64)
    averages: dict[str, Array] = {}

    def ema(name: str, x: Array, decay: float | None, debias: bool, count: int) -> Array:
        if decay is None:
            return x
        averages[name] = decay * averages.get(name, np.zeros_like(x)) + (1 - decay) * x
        return averages[name] / (1 - decay**count) if debias else averages[name]

    for count, raw in enumerate(gradients, start=1):
        g = raw.astype(np.float64)
        smooth = ema("gradient", g, rule.gradient_ema_decay, rule.gradient_ema_debias, count)
        square = ema(
            "square",
            g**2 + rule.eps_square,
            rule.gradient_square_ema_decay,
            rule.gradient_square_ema_debias,
            count,
        )
        update = smooth / (square**0.5 + rule.eps)
        if rule.raw_update_clipping_threshold is not None:
            update = update / max(1.0, np.sqrt(np.mean(update**2)) / rule.raw_update_clipping_threshold)
        update = ema("update", update, rule.update_ema_decay, rule.update_ema_debias, count)
        with_decay = rule.learning_rate * rule.scale * update + rule.weight_decay * w
        w = w - schedule(count) * with_decay
    return w


def unrolled(
    start: Array, gradients: Sequence[Array], schedule: Callable[[int], float], *, factor: float = 1.0
) -> Array:
    """The report's rule (section 3.5) with eta 0.01, decay 3.16e-4 and both betas 0.95."""
    beta, eta, decay = 0.95, 0.01, 3.16e-4
    g = np.stack([one.astype(np.float64) for one in gradients])
    updates = []
    for t in range(1, len(g) + 1):
        ages = beta ** np.arange(t - 1, -1, -1.0)
        mean_square = np.tensordot(ages, g[:t] ** 2 + 1e-30, axes=1) / ages.sum()
        u = g[t - 1] / np.sqrt(mean_square)
        updates.append(u / max(1.0, float(np.linalg.norm(u)) / np.sqrt(u.size)))
    total = start.astype(np.float64)
    for t in range(1, len(g) + 1):
        ages = beta ** np.arange(t - 1, -1, -1.0)
        momentum = (1 - beta) * np.tensordot(ages, np.stack(updates[:t]), axes=1)
        total = total * (1 - schedule(t) * decay) - schedule(t) * eta * factor * momentum
    return total
