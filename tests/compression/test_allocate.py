"""Bits for a budget: met, as good as any choice of that size, and refused when nothing fits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.compression.allocate import (
    Choice,
    allocate,
    allocate_for_loss,
    least_bytes,
    least_loss,
)

BITS = (8, 4, 3, 2)
Choices = dict[str, list[Choice]]


def some_choices(rng: np.random.Generator, modules: int) -> Choices:
    """Any losses, convex in the bytes or not."""
    choices = {}
    for number in range(modules):
        size = int(rng.integers(1, 9)) * 1024
        options = [
            Choice(b, size * b // 8 + int(rng.integers(64)), float(rng.uniform(0, 8 / b))) for b in BITS
        ]
        choices[f"m{number}"] = options[: int(rng.integers(1, 5))]
    return choices


def cost(chosen: dict[str, Choice]) -> tuple[int, float]:
    return sum(c.nbytes for c in chosen.values()), sum(c.loss for c in chosen.values())


def all_ways(choices: Choices) -> list[tuple[int, float]]:
    return [
        (sum(c.nbytes for c in taken), sum(c.loss for c in taken))
        for taken in itertools.product(*choices.values())
    ]


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.floats(0, 1.2))
@settings(max_examples=60, deadline=None)
def test_a_budget_of_bytes_is_met_and_no_other_way_within_it_loses_less(
    seed: int, modules: int, place: float
) -> None:
    choices = some_choices(np.random.default_rng(seed), modules)
    ways = all_ways(choices)
    low, high = min(ways)[0], max(ways)[0]
    budget = int(low + place * (high - low))
    nbytes, loss = cost(allocate(choices, budget))
    assert nbytes <= budget
    # Sizes are rounded up to a 65,536th of the room, so a way that fits by less than that may be missed.
    tight = budget - modules * (budget - low) / 65_536
    assert loss <= min((other for size, other in ways if size <= tight), default=np.inf) + 1e-12


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.floats(0, 1.2))
@settings(max_examples=60, deadline=None)
def test_a_budget_of_loss_is_met_and_no_other_way_within_it_is_smaller(
    seed: int, modules: int, place: float
) -> None:
    choices = some_choices(np.random.default_rng(seed), modules)
    ways = all_ways(choices)
    low, high = min(loss for _, loss in ways), max(loss for _, loss in ways)
    budget = low + place * (high - low) + 1e-9
    nbytes, loss = cost(allocate_for_loss(choices, budget))
    assert loss <= budget
    smallest = min(size for size, other in ways if other <= budget - 1e-9) if place > 0 else nbytes
    room = max(size for size, _ in ways) - min(size for size, _ in ways)
    assert nbytes <= smallest + (modules + 1) * room / 65_536 + 1


def test_two_hundred_modules_come_close_to_the_bound_of_the_relaxed_problem() -> None:
    rng = np.random.default_rng(0)
    choices = {}
    for number in range(210):
        size, weight = int(rng.integers(1, 9)) * 13_824, float(rng.lognormal(0, 1))
        choices[f"m{number}"] = [Choice(b, size * b // 8, weight * 4.0**-b) for b in (4, 3, 2)]
    budget = int(0.875 * sum(options[0].nbytes for options in choices.values()))
    _, loss = cost(allocate(choices, budget))
    # The Lagrangian dual bounds every allocation from below.
    bounds = []
    for price in np.geomspace(1e-12, 1e-3, 4000):
        each = [min(c.loss + price * c.nbytes for c in options) for options in choices.values()]
        bounds.append(sum(each) - price * budget)
    assert max(bounds) <= loss <= max(bounds) * 1.002


def test_a_module_with_one_choice_keeps_it() -> None:
    pinned, free = [Choice(2, 10, 5.0)], [Choice(4, 40, 0.0), Choice(2, 20, 1.0)]
    chosen = allocate({"a": pinned, "b": free}, 1000)
    assert {module: choice.bits for module, choice in chosen.items()} == {"a": 2, "b": 4}


def test_budgets_that_nothing_meets_are_refused_with_what_can_be_reached() -> None:
    choices = {"a": [Choice(4, 40, 0.5), Choice(2, 20, 1.0)]}
    with pytest.raises(ValueError, match="20 at the least"):
        allocate(choices, 19)
    with pytest.raises(ValueError, match=r"0\.5 at the least"):
        allocate_for_loss(choices, 0.4)
    assert (least_bytes(choices), least_loss(choices)) == (20, 0.5)
