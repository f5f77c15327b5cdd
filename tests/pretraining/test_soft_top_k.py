"""Soft-Top-K: the sum, the optimum that two float64 references find, the gradient, the limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.soft_top_k_references import bisection, coda
from pomona.pretraining.training.soft_top_k import soft_top_k


def scores(rows: int = 4, width: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).normal(size=(rows, width)))


@pytest.mark.parametrize("temperature", [10.0, 1.0, 0.1, 1e-3])
@pytest.mark.parametrize("k", [0.5, 1, 7, 7.25, 23.5, 24])
def test_every_row_sums_to_k_and_lies_between_0_and_1(k: float, temperature: float) -> None:
    for dtype, near in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        mask = soft_top_k(scores().to(dtype), k, temperature)
        assert mask.dtype == dtype
        assert mask.sum(-1).numpy() == pytest.approx(np.full(4, k), rel=near)
        assert bool((mask >= 0).all()) and bool((mask <= 1 + near).all())


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-50, 50), min_size=1, max_size=12),
    st.floats(0.01, 1),
    st.floats(1e-3, 10),
)
def test_it_is_the_mask_that_bisection_finds(row: list[float], share: float, temperature: float) -> None:
    k = share * len(row)
    found = soft_top_k(torch.tensor([row], dtype=torch.float64), k, temperature)[0].numpy()
    assert found == pytest.approx(bisection(np.array(row), k, temperature), abs=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_it_is_where_the_rounds_of_coda_arrive(temperature: float) -> None:
    row = scores(1)[0]
    found = soft_top_k(row[None], 9, temperature)[0].numpy()
    assert found == pytest.approx(coda(row.numpy(), 9, temperature), abs=1e-9)
    assert 0 < (found > 1 - 1e-12).sum() < 9  # some at their bound, some not: both cases were met


def test_no_other_mask_of_that_sum_has_a_larger_objective() -> None:
    """s . mask + e H(mask), at random masks between this one and others of the same sum."""
    row, k, e = scores(1)[0].numpy(), 6.0, 0.3
    best = soft_top_k(torch.tensor(row)[None], k, e)[0].numpy()

    def objective(mask: np.ndarray) -> float:
        return float(row @ mask - e * (mask * np.log(mask)).sum())

    rng = np.random.default_rng(1)
    for _ in range(50):
        other = soft_top_k(torch.tensor(rng.normal(size=(1, 24))), k, 1.0)[0].numpy()
        for step in (1e-3, 0.1, 1.0):
            assert objective(best + step * (other - best)) <= objective(best) + 1e-12


@pytest.mark.parametrize("k", [3, 7.5, 23])
@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_its_gradient_is_that_of_finite_differences(k: float, temperature: float) -> None:
    s = scores().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: soft_top_k(x, k, temperature), (s,), eps=1e-7, atol=1e-6)


def test_as_the_temperature_falls_it_becomes_the_hard_choice() -> None:
    s, k = scores(), 7
    hard = torch.zeros_like(s).scatter_(-1, s.topk(k).indices, 1.0)
    gaps = [float((soft_top_k(s, k, t) - hard).abs().max()) for t in (1.0, 0.1, 0.01, 1e-3, 1e-5)]
    assert gaps == sorted(gaps, reverse=True) and gaps[0] > 0.3 and gaps[-1] < 1e-12


def test_equal_scores_and_high_temperatures_share_alike() -> None:
    assert soft_top_k(torch.zeros(2, 10), 4, 0.1).numpy() == pytest.approx(np.full((2, 10), 0.4))
    assert soft_top_k(scores(2, 10), 4, 1e6).numpy() == pytest.approx(np.full((2, 10), 0.4), abs=1e-5)


def test_a_budget_for_all_takes_all() -> None:
    assert soft_top_k(scores(), 24, 0.1).numpy() == pytest.approx(np.ones((4, 24)))


def test_larger_scores_get_no_less_and_a_common_shift_changes_nothing() -> None:
    s = scores()
    mask = soft_top_k(s, 7, 0.3)
    ordered = mask.gather(-1, s.argsort(-1))
    assert bool((ordered.diff(dim=-1) >= 0).all())
    assert soft_top_k(s + 100, 7, 0.3).numpy() == pytest.approx(mask.numpy(), abs=1e-9)


def test_rows_do_not_see_each_other() -> None:
    s = scores()
    assert torch.equal(soft_top_k(s, 7, 0.3)[2], soft_top_k(s[2:3], 7, 0.3)[0])


def test_scores_far_apart_give_numbers_and_gradients() -> None:
    s = torch.tensor([[1e4, 5e3, 0.0, -1e4, -1e4]], requires_grad=True)
    mask = soft_top_k(s, 3, 1e-3)
    mask[0, 2].backward()
    assert mask.detach().numpy() == pytest.approx(np.array([[1, 1, 1, 0, 0]]))
    assert s.grad is not None and bool(s.grad.isfinite().all())


@pytest.mark.parametrize(("k", "temperature"), [(0, 1.0), (25, 1.0), (-1, 1.0), (3, 0.0), (3, float("nan"))])
def test_what_makes_no_sense_is_refused(k: float, temperature: float) -> None:
    with pytest.raises(ValueError, match="must"):
        soft_top_k(scores(), k, temperature)
