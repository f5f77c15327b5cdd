"""The reward that MDLOO uses and its leave-one-out advantage (report, 4.6, equations 2 and 3).

    R(x, y)  = r(x, y) - beta * log( pi_k(y | x) / pi_ref(y | x) )
    Ahat_i   = R_i - 1/(K-1) sum_{j != i} R_j  =  K/(K-1) (R_i - mean R)

There is no division by a standard deviation. A response that could not be scored (NaN) has no part in the
mean of its prompt and the advantage 0; the others of its prompt are then fewer.

Shape letters: P prompts, K responses of each.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def shaped_rewards(reward_PK: Floats, log_ratio_PK: Floats, beta: float) -> Floats:
    """log_ratio: log pi_k(y|x) - log pi_ref(y|x), of the policy that sampled."""
    return reward_PK - beta * log_ratio_PK


def leave_one_out(reward_PK: Floats) -> Floats:
    """[P, K]. A prompt with fewer than two scored responses teaches nothing: zeros."""
    scored = np.isfinite(reward_PK)
    count = scored.sum(1, keepdims=True)
    filled = np.where(scored, reward_PK, 0.0)
    others = (filled.sum(1, keepdims=True) - filled) / np.maximum(count - 1, 1)
    return np.where(scored & (count > 1), filled - others, 0.0)


def most_telling(reward_PK: Floats, count: int) -> NDArray[np.bool_]:
    """[P, K]: of every prompt's responses the `count` whose rewards have the largest variance: some of the
    best and some of the worst (max-variance down-sampling, Xu et al., arXiv:2504.13818). None of a prompt
    whose responses are all worth the same, or where fewer than two were scored."""
    chosen = np.zeros(reward_PK.shape, bool)
    for row, mark in zip(reward_PK, chosen, strict=True):
        scored = np.flatnonzero(np.isfinite(row))
        order = scored[np.argsort(row[scored], kind="stable")]
        if len(order) < 2 or row[order[0]] == row[order[-1]]:
            continue
        size = min(count, len(order))
        choices = [np.r_[order[: size - best], order[len(order) - best :]] for best in range(1, size)]
        mark[max(choices, key=lambda choice: float(row[choice].var()))] = True
    return chosen


def best_of(reward_PK: Floats) -> list[int | None]:
    """For every prompt the number of its best response, the first of equals; None where nothing was scored,
    or where all are equal: then none is better than another."""
    found: list[int | None] = []
    for row in reward_PK:
        scored = row[np.isfinite(row)]
        distinct = len(scored) > 0 and scored.max() > scored.min()
        found.append(int(np.nanargmax(row)) if distinct else None)
    return found
