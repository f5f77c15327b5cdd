"""Next-token cross-entropy and z-loss against torch's own functions and finite differences."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from pomona.pretraining.training.loss import Batch, NextTokenLoss, cross_entropy


class Table(torch.nn.Module):
    """A "model" whose logits are a table by token."""

    def __init__(self, size: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table = torch.nn.Parameter(torch.randn(size, size, dtype=torch.float64))

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids])


def test_it_is_torchs_cross_entropy() -> None:
    logits, labels = torch.randn(3, 5, 11), torch.randint(0, 11, (3, 5))
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert float(cross_entropy(logits, labels)[0]) == pytest.approx(float(expected), rel=1e-6)


def test_z_is_the_mean_square_of_log_z() -> None:
    logits = torch.zeros(2, 3, 7)  # Z = 7
    assert float(cross_entropy(logits, torch.zeros(2, 3, dtype=torch.long))[1]) == pytest.approx(
        math.log(7) ** 2
    )


def test_bfloat16_logits_are_summed_in_float32() -> None:
    logits, labels = (torch.randn(64, 4096) + 3).to(torch.bfloat16), torch.randint(0, 4096, (64,))
    expected = torch.nn.functional.cross_entropy(logits.double(), labels)
    assert float(cross_entropy(logits, labels)[0]) == pytest.approx(float(expected), rel=1e-5)


def test_a_shift_of_all_logits_costs_z_and_nothing_else() -> None:
    logits, labels = torch.randn(4, 9), torch.arange(4)
    cross, z = cross_entropy(logits, labels)
    shifted_cross, shifted_z = cross_entropy(logits + 5, labels)
    assert float(shifted_cross) == pytest.approx(float(cross), abs=1e-5)
    assert float(shifted_z) > float(z) + 10


def test_its_gradient_is_that_of_finite_differences() -> None:
    model, ids = Table(6), torch.randint(0, 6, (2, 9))
    batch = Batch(ids[:, :-1], ids[:, 1:], torch.arange(2))
    loss = NextTokenLoss(z_weight=0.1)

    def exact() -> float:
        logits = model.table.detach()[batch.ids_BS]
        log_z = logits.logsumexp(-1)
        cross = log_z - logits.gather(-1, batch.labels_BS[..., None])[..., 0]
        return float(cross.mean() + 0.1 * log_z.square().mean())

    loss(model, batch).total.backward()
    assert model.table.grad is not None
    for row, column in ((int(ids[0, 0]), 1), (int(ids[1, 3]), 5)):
        with torch.no_grad():
            model.table[row, column] += 1e-4
            above = exact()
            model.table[row, column] -= 2e-4
            below = exact()
            model.table[row, column] += 1e-4
        assert float(model.table.grad[row, column]) == pytest.approx((above - below) / 2e-4, abs=1e-5)
