"""The report's optimizer against two float64 references, closed forms and AdamW; what one may rely on."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.optimizer_references import Rule, adastar, unrolled
from pomona.pretraining.schedule import schedule
from pomona.pretraining.training.optimizer import RMSPropMomentum

STEPS = 40


def share(count: int) -> float:
    """A schedule with warm-up and decay, for counts from 1."""
    return schedule(count - 1, steps=STEPS, warm_up=5, floor=0.005)


def sequence(shape: tuple[int, ...], seed: int = 0) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
    """Weights and gradients that exercise the rule: noise, jumps that are clipped, zeros, tiny values."""
    rng = np.random.default_rng(seed)
    gradients = [rng.normal(size=shape) * 10.0 ** rng.uniform(-4, 1) for _ in range(STEPS)]
    gradients[7] *= 1e3
    gradients[12][...] = 0.0
    gradients[20] *= 1e-12
    for one in gradients:
        one[0] = 0.0  # a row that never has a gradient, as a token that never comes
    return rng.normal(size=shape), gradients


def run(
    start: NDArray[np.float64],
    gradients: list[NDArray[np.float64]],
    dtype: torch.dtype = torch.float64,
    **settings: float,
) -> NDArray[np.float64]:
    """Ours, driven by torch's own scheduler."""
    w = torch.nn.Parameter(torch.tensor(start, dtype=dtype))
    optimizer = RMSPropMomentum([w], lr=0.01, **settings)  # type: ignore[arg-type]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share(step + 1))
    for gradient in gradients:
        w.grad = torch.from_numpy(gradient).to(dtype)
        optimizer.step()
        scheduler.step()
    found: NDArray[np.float64] = w.detach().to(torch.float64).numpy()
    return found


Reference = Callable[..., NDArray[np.float64]]


@pytest.mark.parametrize("shape", [(6, 5), (9,), (4, 3, 2)])
@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_it_equals_both_references(shape: tuple[int, ...], factor: float) -> None:
    start, gradients = sequence(shape)
    ours = run(start, gradients, factor=factor)
    assert np.abs(ours - adastar(start, gradients, share, Rule(scale=factor))).max() < 1e-12
    assert np.abs(ours - unrolled(start, gradients, share, factor=factor)).max() < 1e-12


def test_in_float32_it_equals_the_references_to_a_millionth() -> None:
    start, gradients = sequence((64, 32))
    ours = run(start, gradients, torch.float32)
    for expected in (adastar(start, gradients, share, Rule()), unrolled(start, gradients, share)):
        assert ours == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_the_general_rule_of_the_reference_is_the_published_one() -> None:
    """AXLearn's documentation and tests say which setting of the rule is AdamW; torch's AdamW decides."""
    start, gradients = sequence((5, 4))
    gradients = [one + 1e-3 for one in gradients]  # AdamW divides by zero otherwise
    w = torch.nn.Parameter(torch.tensor(start))
    adamw = torch.optim.AdamW([w], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.02)
    for gradient in gradients:
        w.grad = torch.from_numpy(gradient)
        adamw.step()
    rule = Rule(
        gradient_ema_decay=0.9,
        gradient_ema_debias=True,
        eps=1e-8,
        eps_square=0.0,
        raw_update_clipping_threshold=None,
        update_ema_decay=None,
        weight_decay=0.01 * 0.02,
    )
    expected = adastar(start, gradients, lambda count: 1.0, rule)
    assert np.abs(w.detach().numpy() - expected).max() < 1e-12


def test_a_constant_gradient_has_a_closed_form() -> None:
    """v is g^2 after correction, so every update is the gradient's sign, and m is (1 - 0.95^t) times it."""
    gradient = np.array([3.0, -1e-5, 7e4])
    w = run(np.zeros(3), [gradient] * STEPS, weight_decay=0.0)
    moved = sum(share(t) * 0.01 * (1 - 0.95**t) for t in range(1, STEPS + 1))
    assert w == pytest.approx(-moved * np.sign(gradient), rel=1e-12)


def test_a_jump_of_one_tensor_is_clipped_to_a_root_mean_square_of_one() -> None:
    quiet, jump = np.full(8, 1e-3), np.full(8, 1e3)
    w = torch.nn.Parameter(torch.zeros(8, dtype=torch.float64))
    optimizer = RMSPropMomentum([w], lr=1.0, weight_decay=0.0)
    for gradient in (*[quiet] * 30, jump):
        before = w.detach().clone()
        w.grad = torch.from_numpy(gradient)
        m = optimizer.state[w]["momentum"].clone() if optimizer.state[w] else torch.zeros(8)
        optimizer.step()
    added = (before - w.detach() - 0.95 * m) / 0.05
    assert float(added.square().mean().sqrt()) == pytest.approx(1.0)  # unclipped it would be 4.4


def test_the_decay_follows_the_schedule_and_not_the_rate() -> None:
    """Without gradient signal a weight shrinks by 1 - s d, whatever eta is."""
    expected = math.prod(1 - share(t) * 3.16e-4 for t in range(1, STEPS + 1))
    for lr in (1e-4, 0.5):
        w = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        optimizer = RMSPropMomentum([w], lr=lr)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share(step + 1))
        for _ in range(STEPS):
            w.grad = torch.zeros_like(w)
            optimizer.step()
            scheduler.step()
        assert w.detach().numpy() == pytest.approx(expected, rel=1e-12)


def test_rescaling_all_gradients_changes_nothing() -> None:
    start, gradients = sequence((6, 5))
    one, other = run(start, gradients), run(start, [1024.0 * gradient for gradient in gradients])
    assert np.array_equal(one, other)  # a power of two: no rounding differs


def test_what_has_no_gradient_stays() -> None:
    a, b = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer = RMSPropMomentum([a, b])
    a.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(b.detach(), torch.ones(3)) and not optimizer.state[b]
    assert not torch.equal(a.detach(), torch.ones(3))


def test_the_state_travels_through_a_state_dict() -> None:
    start, gradients = sequence((6, 5))
    whole = torch.nn.Parameter(torch.tensor(start))
    optimizer = RMSPropMomentum([whole])
    resumed = None
    for number, gradient in enumerate(gradients):
        if number == 17:
            resumed = torch.nn.Parameter(whole.detach().clone())
            second = RMSPropMomentum([resumed])
            second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for w, one in [(whole, optimizer)] + ([(resumed, second)] if resumed is not None else []):
            w.grad = torch.from_numpy(gradient)
            one.step()
    assert resumed is not None and torch.equal(whole, resumed)


@pytest.mark.parametrize(
    "settings",
    [{"lr": 0.0}, {"betas": (1.0, 0.9)}, {"clip": -1.0}, {"weight_decay": -1e-3}, {"lr": float("nan")}],
)
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must"):
        RMSPropMomentum([torch.nn.Parameter(torch.ones(1))], **settings)  # type: ignore[arg-type]
