"""A budget of bits, bytes or loss becomes the bits of every module, or says what can be reached."""

from __future__ import annotations

import pytest

from pomona.compression.budget import Budget, BudgetError, choose
from pomona.compression.report import ChoiceReport

WEIGHTS = 1_000_000  # of each of two modules


def module(scale: float, measured: bool = True) -> list[ChoiceReport]:
    return [
        ChoiceReport(bits, WEIGHTS * bits // 8, 4.0**-bits, scale * 16.0**-bits if measured else None)
        for bits in (4, 3, 2)
    ]


CHOICES = {"calm": module(1.0), "touchy": module(100.0)}


def test_bits_per_weight_go_where_they_are_needed() -> None:
    assert choose(CHOICES, Budget(bits=3), 2 * WEIGHTS, 0) == {"calm": 2, "touchy": 4}


def test_a_size_counts_everything_else_in_the_file() -> None:
    size = 2 * WEIGHTS * 3 // 8 + 5_000_000
    assert choose(CHOICES, Budget(size=size), 2 * WEIGHTS, 5_000_000) == {"calm": 2, "touchy": 4}


def test_a_loss_is_met_with_the_fewest_bytes() -> None:
    least = 16.0**-3 + 100 * 16.0**-4
    assert choose(CHOICES, Budget(max_kl=least * 1.01), 2 * WEIGHTS, 0) == {"calm": 3, "touchy": 4}


def test_without_a_measured_loss_the_error_stands_for_it() -> None:
    choices = {"calm": module(1.0, measured=False), "touchy": module(100.0, measured=False)}
    assert choose(choices, Budget(bits=3), 2 * WEIGHTS, 0) in (
        {"calm": 3, "touchy": 3},
        {"calm": 2, "touchy": 4},
        {"calm": 4, "touchy": 2},
    )


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(bits=1.9), r"--bits 1\.9: .* 2\.00 bits per weight at the least"),
        (Budget(size=300_000), r"--size 300,000: the model takes 500,000 bytes at the least"),
        (Budget(max_kl=1e-4), r"--max-kl 0\.0001: the least that can be had is 0\.0015"),
    ],
)
def test_what_cannot_be_reached_is_refused_with_what_can(budget: Budget, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        choose(CHOICES, budget, 2 * WEIGHTS, 0)
