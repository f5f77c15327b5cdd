"""The rules that are mathematics and not training: the optimizer and Soft-Top-K against independent
references."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.common import Goal, Report, machine_facts
from benchmarks.pretraining_optimizer import GRADIENTS, largest_difference
from benchmarks.soft_top_k_references import bisection, coda

ROWS, WIDTH, KEPT = 8, 96, 33
ROUNDS = 20  # of CoDA's coordinate ascent, as it is commonly cut off
TEMPERATURES = (1.0, 0.1, 0.01)
STEP = 1e-4  # of the finite differences, in temperatures


def rules() -> Report:
    """Differences, in float32 for the optimizer and float64 for Soft-Top-K unless said."""
    machine = machine_facts()
    optimizer = largest_difference()
    sums, references, gradients, hard = soft_top_k_differences()
    rows = [
        _row(f"optimizer: weights after {GRADIENTS} gradients, float32, relative", optimizer),
        _row("Soft-Top-K: sum less k, float32, relative", sums),
        _row("Soft-Top-K: from bisection and from CoDA's rounds", references),
        _row("Soft-Top-K: gradient from central differences, relative", gradients),
        _row("Soft-Top-K: from the hard mask, temperature a hundredth of the smallest gap", hard),
    ]
    goals = [
        Goal("optimizer from its float64 references, in millionths", 1e6 * optimizer, 1.0, "<="),
        Goal("Soft-Top-K: sum less k, relative, in millionths", 1e6 * sums, 1.0, "<="),
        Goal("Soft-Top-K from its references, in millionths", 1e6 * references, 1.0, "<="),
        Goal("Soft-Top-K: gradient from differences, relative, in millionths", 1e6 * gradients, 1.0, "<="),
        Goal("Soft-Top-K from the hard mask at a low temperature, in millionths", 1e6 * hard, 1.0, "<="),
    ]
    notes = [
        f"Soft-Top-K: {ROWS} rows of {WIDTH} normal scores, {KEPT} to keep; "
        "CoDA's rounds until nothing changes",
        *(
            f"after {ROUNDS} of its rounds CoDA is {difference:.1e} off at a temperature of {temperature:g}"
            for temperature, difference in zip(TEMPERATURES, few_rounds(), strict=True)
        ),
    ]
    return Report("pretraining", {"rows": rows, "notes": notes}, goals, machine)


def few_rounds() -> list[float]:
    """How far CoDA is from the solution after ROUNDS of its rounds, at each temperature."""
    rows = np.random.default_rng(0).normal(size=(ROWS, WIDTH))
    return [
        max(float(np.abs(coda(row, KEPT, t, ROUNDS) - bisection(row, KEPT, t)).max()) for row in rows)
        for t in TEMPERATURES
    ]


def soft_top_k_differences() -> tuple[float, float, float, float]:
    """The largest: of the sum (float32), from the references, of the gradient, from the hard mask."""
    import torch

    from pomona.pretraining.training.soft_top_k import soft_top_k

    rng = np.random.default_rng(0)
    scores = rng.normal(size=(ROWS, WIDTH))
    weights = torch.tensor(rng.normal(size=scores.shape))
    sums = references = gradients = 0.0
    for temperature in TEMPERATURES:
        narrow = soft_top_k(torch.tensor(scores, dtype=torch.float32), KEPT, temperature)
        sums = max(sums, float((narrow.sum(-1) - KEPT).abs().max()) / KEPT)
        s = torch.tensor(scores, requires_grad=True)
        mask = soft_top_k(s, KEPT, temperature)
        ours = mask.detach().numpy()
        for row, found in zip(scores, ours, strict=True):
            for reference in (bisection, coda):
                references = max(references, float(np.abs(reference(row, KEPT, temperature) - found).max()))
        (mask * weights).sum().backward()
        assert s.grad is not None
        gradients = max(gradients, _from_differences(scores, weights, temperature, s.grad.numpy()))
    gaps = np.diff(np.sort(scores, axis=-1), axis=-1)[:, WIDTH - KEPT - 1]
    hard = (scores >= np.sort(scores, axis=-1)[:, [-KEPT]]).astype(float)
    cold = soft_top_k(torch.tensor(scores), KEPT, float(gaps.min()) / 100).numpy()
    return sums, references, gradients, float(np.abs(cold - hard).max())


def _from_differences(scores: Any, weights: Any, temperature: float, gradient: Any) -> float:
    """Of `gradient` from central differences of the weighted sum, over its largest entry; row 0."""
    import torch

    from pomona.pretraining.training.soft_top_k import soft_top_k

    worst = 0.0
    for column in range(WIDTH):
        moved = np.repeat(scores[:1], 2, axis=0)
        moved[0, column] += STEP * temperature
        moved[1, column] -= STEP * temperature
        above, below = (soft_top_k(torch.tensor(moved), KEPT, temperature) * weights[0]).sum(-1).tolist()
        worst = max(worst, abs((above - below) / (2 * STEP * temperature) - gradient[0, column]))
    return worst / float(np.abs(gradient[0]).max())


def _row(measure: str, value: float) -> dict[str, str | float]:
    return {"largest difference": measure, "value": f"{value:.1e}"}
