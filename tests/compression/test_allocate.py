"""Bits for a budget: met, as good as any choice of that size, and refused when nothing fits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.compression.allocate import Choice, allocate
from pomona.errors import PomonaError

Choices = dict[str, list[Choice]]
BITS = (4, 3, 2)


def convex(rng: np.random.Generator, modules: int) -> tuple[Choices, int]:
    """Choices whose loss grows ever faster per byte saved, as that of palettes does; and how many weights."""
    choices, weights = {}, 0
    for number in range(modules):
        size = int(rng.integers(1, 9)) * 1024
        overhead = int(rng.integers(0, 64))
        sizes = [size * bits // 8 + overhead * (bits - 1) for bits in BITS]
        rates = np.sort(rng.uniform(0.0, 1.0, 2) * 10.0 ** rng.uniform(-3, 0))
        first = float(rng.uniform(0, 0.01))
        second = first + float(rates[0]) * (sizes[0] - sizes[1])
        third = second + float(rates[1]) * (sizes[1] - sizes[2])
        losses = (first, second, third)
        choices[f"m{number}"] = [Choice(b, n, loss) for b, n, loss in zip(BITS, sizes, losses, strict=True)]
        weights += size
    return choices, weights


def cost(choices: Choices, bits: dict[str, int]) -> tuple[int, float]:
    """Bytes and loss."""
    taken = [next(c for c in choices[module] if c.bits == width) for module, width in bits.items()]
    return sum(c.nbytes for c in taken), sum(c.loss for c in taken)


def least_loss(choices: Choices, nbytes: float) -> float:
    """Over all ways to choose that fit."""
    return min(
        sum(c.loss for c in taken)
        for taken in itertools.product(*choices.values())
        if sum(c.nbytes for c in taken) <= nbytes
    )


def lowest(choices: Choices, weights: int) -> float:
    return 8 * sum(options[-1].nbytes for options in choices.values()) / weights


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.floats(0, 1))
@settings(max_examples=150, deadline=None)
def test_the_budget_is_met_and_no_choice_of_that_size_loses_less(
    seed: int, modules: int, place: float
) -> None:
    choices, weights = convex(np.random.default_rng(seed), modules)
    budget = lowest(choices, weights) * (1 - place) + 4.5 * place + 1e-9
    bits = allocate(choices, weights, budget)
    assert list(bits) == list(choices)
    nbytes, loss = cost(choices, bits)
    assert 8 * nbytes / weights <= budget
    assert loss <= least_loss(choices, nbytes) * (1 + 1e-9) + 1e-12


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.floats(0, 1))
@settings(max_examples=150, deadline=None)
def test_against_all_choices_it_loses_no_more_than_its_last_step(
    seed: int, modules: int, place: float
) -> None:
    """One step fewer would not fit, and would be the best of its size: a bound on any choice that fits."""
    choices, weights = convex(np.random.default_rng(seed), modules)
    budget = lowest(choices, weights) * (1 - place) + 4.5 * place + 1e-9
    nbytes, loss = cost(choices, allocate(choices, weights, budget))
    steps = [
        (larger.loss, smaller.loss)
        for options in choices.values()
        for larger, smaller in itertools.pairwise(options)
    ]
    step = max(after - before for before, after in steps)
    assert loss - least_loss(choices, budget * weights / 8) <= step + 1e-12
    spare = budget * weights / 8 - nbytes
    largest = max(a.nbytes - b.nbytes for options in choices.values() for a, b in itertools.pairwise(options))
    assert spare < largest or nbytes == sum(options[0].nbytes for options in choices.values())


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_a_larger_budget_gives_no_module_fewer_bits(seed: int, modules: int) -> None:
    choices, weights = convex(np.random.default_rng(seed), modules)
    budgets = np.linspace(lowest(choices, weights) + 1e-9, 4.6, 12)
    found = [allocate(choices, weights, float(budget)) for budget in budgets]
    for less, more in itertools.pairwise(found):
        assert all(less[module] <= more[module] for module in choices)
        assert cost(choices, less)[1] >= cost(choices, more)[1]


def test_with_room_for_all_nothing_is_lost() -> None:
    choices, weights = convex(np.random.default_rng(0), 5)
    assert allocate(choices, weights, 5.0) == dict.fromkeys(choices, 4)


def test_with_room_for_the_least_alone_all_have_two_bits() -> None:
    choices, weights = convex(np.random.default_rng(1), 5)
    assert allocate(choices, weights, lowest(choices, weights) + 1e-9) == dict.fromkeys(choices, 2)


def test_what_loses_little_gives_way_first() -> None:
    dear, cheap = ([Choice(b, 1000 * b, factor * (4 - b) ** 2) for b in BITS] for factor in (100.0, 1.0))
    assert allocate({"dear": dear, "cheap": cheap}, 16_000, 3.5) == {"dear": 4, "cheap": 3}
    assert allocate({"dear": dear, "cheap": cheap}, 16_000, 3.0) == {"dear": 4, "cheap": 2}
    assert allocate({"dear": dear, "cheap": cheap}, 16_000, 2.5) == {"dear": 3, "cheap": 2}


def test_a_step_of_two_bits_is_taken_at_once_where_it_pays() -> None:
    """Three bits lose nearly all that two lose."""
    bent = [Choice(4, 4000, 0.0), Choice(3, 3000, 10.0), Choice(2, 2000, 11.0)]
    even = [Choice(4, 4000, 0.0), Choice(3, 3000, 7.0), Choice(2, 2000, 14.0)]
    assert allocate({"bent": bent, "even": even}, 16_000, 3.9) == {"bent": 2, "even": 4}


def test_equal_modules_are_taken_by_name() -> None:
    same = [Choice(b, 1000 * b, float((4 - b) ** 2)) for b in BITS]
    choices = {name: list(same) for name in ("b", "c", "a")}
    assert allocate(choices, 24_000, 3.7) == {"a": 3, "b": 4, "c": 4}


def test_a_budget_below_the_least_is_refused_with_what_is_possible() -> None:
    choices = {"a": [Choice(b, 1000 * b + 100, float(4 - b)) for b in BITS]}
    assert allocate(choices, 8000, 2.1) == {"a": 2}
    with pytest.raises(PomonaError, match=r"--bits 2\.05: .* 2\.10 bits per weight at the least") as caught:
        allocate(choices, 8000, 2.05)
    assert "\n" not in str(caught.value)
