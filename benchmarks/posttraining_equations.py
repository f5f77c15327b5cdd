"""MDLOO's step against a derivation by hand, and what gamma does when many inner steps are made.

A softmax policy with a table of logits [position, vocabulary], in float64; the formulas are those of
posttraining/training/mdloo_loss.py, here written out term by term with numpy.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
V, LENGTH, RESPONSES = 11, 4, 64


def softmax(z: Floats) -> Floats:
    e = np.exp(z - z.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def library_gradient(
    theta: Floats, old: Floats, tokens: NDArray[np.int64], advantage: Floats, estimator: Any, gamma: float
) -> Floats:
    """d loss / d theta as the trainer computes it."""
    import torch

    from pomona.posttraining.training.mdloo_loss import (
        Responses,
        log_probs,
        logits_gradient,
        mirror_descent_coefficients,
    )

    count, length = tokens.shape
    places = np.tile(np.arange(length), count)
    owner = torch.arange(count).repeat_interleave(length)
    responses = Responses(torch.from_numpy(tokens.reshape(-1)), owner, count)
    logits, before = torch.from_numpy(theta[places]), torch.from_numpy(old[places])
    log_p, log_z = log_probs(logits, responses)
    log_ratio = responses.sums(log_p) - responses.sums(log_probs(before, responses)[0])
    coefficients = mirror_descent_coefficients(
        log_ratio, torch.from_numpy(advantage), gamma=gamma, estimator=estimator, total=count
    )
    exact = estimator == "exact"
    logits_gradient(
        logits,
        responses,
        log_z,
        coefficients,
        kl_weight=gamma / count if exact else 0.0,
        old_logits=(lambda block: before[block]) if exact else None,
    )
    grad = np.zeros_like(theta)
    np.add.at(grad, places, logits.numpy())
    return grad


def hand_gradient(
    theta: Floats, old: Floats, tokens: NDArray[np.int64], advantage: Floats, estimator: str, gamma: float
) -> Floats:
    pi, before = softmax(theta), softmax(old)
    grad = np.zeros_like(theta)
    for row, a in zip(tokens, advantage, strict=True):
        rho = math.prod(pi[t, y] / before[t, y] for t, y in enumerate(row))
        weight = -rho * a + (gamma * rho * math.log(rho) if estimator == "sampled" else 0.0)
        for t, y in enumerate(row):
            for v in range(theta.shape[1]):
                grad[t, v] += weight * ((v == y) - pi[t, v])
            if estimator == "exact":
                gaps = [math.log(p / q) for p, q in zip(pi[t], before[t], strict=True)]
                kl = sum(p * gap for p, gap in zip(pi[t], gaps, strict=True))
                for v in range(theta.shape[1]):
                    grad[t, v] += gamma * pi[t, v] * (gaps[v] - kl)
    return np.asarray(grad / len(tokens))


def hand_gap(estimator: str, gamma: float = 0.3, seed: int = 0) -> float:
    """Largest difference between the two gradients."""
    rng = np.random.default_rng(seed)
    old = rng.standard_normal((LENGTH, V))
    theta = old + 0.4 * rng.standard_normal((LENGTH, V))
    tokens = rng.integers(0, V, (RESPONSES, LENGTH))
    advantage = rng.standard_normal(RESPONSES)
    ours = library_gradient(theta, old, tokens, advantage, estimator, gamma)
    return float(np.abs(ours - hand_gradient(theta, old, tokens, advantage, estimator, gamma)).max())


def drift(gamma: float, steps: int = 400, lr: float = 2.0) -> tuple[float, float]:
    """KL(pi || pi_k) after many inner steps on the same responses, and that of the step's optimum
    pi_k exp(A / gamma) / Z (infinite steps without gamma: all on the best response)."""
    rng = np.random.default_rng(1)
    old, a = rng.standard_normal((1, V)), rng.permutation(np.linspace(-2, 2, V))
    before = softmax(old)[0]
    tokens = np.arange(V)[:, None]  # every response once, weighted by pi_k: no chance
    theta = old.copy()
    for _ in range(steps):
        theta = theta - lr * library_gradient(theta, old, tokens, a * before * V, "exact", gamma)
    pi = softmax(theta)[0]
    if gamma > 0:
        limit = before * np.exp(a / gamma)
        limit /= limit.sum()
        wanted = float(limit @ np.log(limit / before))
    else:
        wanted = -math.log(before[a.argmax()])
    return float(pi @ np.log(pi / before)), wanted
