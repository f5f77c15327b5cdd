"""A win rate as it would be if both systems' answers had the same length.

Judges like long answers. AlpacaEval 2 (Dubois, Galambosi, Liang and Hashimoto, "Length-Controlled
AlpacaEval", arXiv 2404.04475) fits a logistic regression of who won on how much longer the answer is, and
reads it off at no difference:

    P(A wins on x) = sigma(theta + phi tanh((|a(x)| - |b(x)|) / s))      s: the differences' deviation
    controlled win rate = sigma(theta)

Its third term, how hard an instruction is, is estimated from many systems at once and is left out here, where
there are two; so are its two gamed baselines, in whose place a ridge of weight 1 keeps phi finite.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pomona.adapters.metrics import Interval
from pomona.errors import PomonaError
from pomona.evaluation.statistics import Floats, bootstrap

RIDGE = 1.0  # of phi: |phi|^2 / 2 is added to the loss; ours
STEPS = 50


def length_controlled(
    won: Sequence[float],
    ours: Sequence[int],
    theirs: Sequence[int],
    groups: Sequence[object] | None = None,
    *,
    seed: int = 0,
) -> tuple[Interval, float]:
    """(the controlled win rate with a bootstrap interval of 95%, phi).

    won: 1, 0, or between where the orders or the judge say so. ours, theirs: characters of the answers.
    groups: rows of one question, which are drawn together; by default each row is one of its own.
    phi > 0: the longer answer wins more often.
    """
    if not len(won) == len(ours) == len(theirs) or not len(won):
        raise PomonaError("length control: needs the same number of results and lengths, at least one")
    y = np.asarray(won, np.float64)
    longer = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    spread = longer.std()
    x = np.tanh(longer / spread) if spread > 0 else np.zeros_like(longer)
    names = list(range(len(y))) if groups is None else list(groups)
    places = {name: index for index, name in enumerate(dict.fromkeys(names))}
    member = np.array([places[name] for name in names])
    interval = bootstrap(
        lambda weights: _sigma(fit(x, y, weights[:, member])[0]), len(places), draws=500, seed=seed
    )
    _, phi = fit(x, y, np.ones((1, len(y))))
    return interval, float(phi[0])


def fit(x: Floats, y: Floats, weights_DN: Floats) -> tuple[Floats, Floats]:
    """theta and phi for D weightings of the N rows at once, by Newton's method with halved steps.

    Where all rows were won (or lost), theta is (minus) infinity.
    """
    w = weights_DN
    total, wins = w.sum(1), w @ y
    mixed = (wins > 0) & (wins < total)
    theta = np.where(wins > 0, np.inf, -np.inf)
    phi = np.zeros_like(theta)
    if not mixed.any():
        return theta, phi
    w = w[mixed]
    t = np.log(wins[mixed] / (total[mixed] - wins[mixed]))
    f = np.zeros_like(t)
    loss = _loss(x, y, w, t, f)
    for _ in range(STEPS):
        p = _sigma(t[:, None] + f[:, None] * x)
        error, curve = w * (p - y), w * p * (1 - p)
        g_t, g_f = error.sum(1), error @ x + RIDGE * f
        h_tt, h_tf, h_ff = curve.sum(1), curve @ x, curve @ (x * x) + RIDGE
        below = np.maximum(h_tt * h_ff - h_tf * h_tf, 1e-12)
        step_t = (h_ff * g_t - h_tf * g_f) / below
        step_f = (h_tt * g_f - h_tf * g_t) / below
        size = np.ones_like(t)
        for _ in range(30):  # until no weighting's loss grows
            worse = _loss(x, y, w, t - size * step_t, f - size * step_f) > loss + 1e-12
            if not worse.any():
                break
            size = np.where(worse, size / 2, size)
        t, f = t - size * step_t, f - size * step_f
        loss = _loss(x, y, w, t, f)
        if max(np.abs(g_t).max(), np.abs(g_f).max()) < 1e-9:
            break
    theta[mixed], phi[mixed] = t, f
    return theta, phi


def _loss(x: Floats, y: Floats, w: Floats, theta: Floats, phi: Floats) -> Floats:
    z = theta[:, None] + phi[:, None] * x
    return np.asarray((w * (np.logaddexp(0, z) - y * z)).sum(1) + RIDGE * phi * phi / 2)


def _sigma(z: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(z / 2)))
