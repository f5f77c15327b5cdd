"""benchmarks.pretraining_optimizer: which runs are made, how the best are chosen, and the goals."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.pretraining_optimizer import (
    ADAMW,
    FULL,
    OURS,
    QUICK,
    Trial,
    best_losses,
    best_rate,
    goals,
    largest_difference,
    notes,
    picture,
    recipe,
    rows,
    sweep,
)
from pomona.errors import PomonaError


def bowl(optimizer: str, width: int, rate: float, seed: int) -> float:
    """A loss with its least at 0.01 for ours at any width; AdamW's moves with the width."""
    least = 0.01 if optimizer == OURS else 0.02 * 64 / width
    return 3.0 + 0.1 * math.log2(rate / least) ** 2 + 0.001 * seed + (0.01 if optimizer == ADAMW else 0.0)


@pytest.fixture(scope="module")
def trials() -> list[Trial]:
    return sweep(bowl, FULL, 3)


def test_every_rate_once_and_the_best_with_all_seeds(trials: list[Trial]) -> None:
    assert len(trials) == 2 * 2 * len(FULL.rates) + 2 * 2 * 2
    assert [best_rate(trials, OURS, width) for width in FULL.widths] == [0.01, 0.01]
    assert [best_rate(trials, ADAMW, width) for width in FULL.widths] == [0.02, 0.005]
    assert best_losses(trials, OURS, 256) == pytest.approx([3.0, 3.001, 3.002])


def test_the_goals_compare_means_at_the_best_rates(trials: list[Trial]) -> None:
    found = goals(trials, FULL, 2e-7)
    assert [goal.value for goal in found] == pytest.approx([-0.01, -0.01, 1.0, 0.2])
    assert all(goal.met for goal in found)
    worse = [replace(one, loss=one.loss + 0.02 * (one.optimizer == OURS)) for one in trials]
    assert [goal.met for goal in goals(worse, FULL, 2e-6)] == [False, False, True, False]


def test_a_run_that_diverges_is_kept_as_one() -> None:
    def train(optimizer: str, width: int, rate: float, seed: int) -> float:
        if rate > 0.03:
            raise PomonaError("step 60: the gradient norm was at or above 100; lower peak_lr")
        return bowl(optimizer, width, rate, seed)

    found = sweep(train, FULL, 1)
    assert len(found) == 28 and sum(math.isinf(one.loss) for one in found) == 12
    assert best_rate(found, OURS, 64) == 0.01
    assert "inf" in rows(found, FULL)[-1].values() and "<svg" in picture(found, FULL)


def test_the_notes_say_when_the_best_rate_is_at_the_edge(trials: list[Trial]) -> None:
    assert not any("edge" in line for line in notes(trials, FULL, 0.0))
    shifted = [replace(one, loss=-one.rate) for one in trials]
    assert sum("edge" in line for line in notes(shifted, FULL, 0.0)) == 4


@pytest.mark.parametrize("scale", [FULL, QUICK])
def test_runs_differ_in_nothing_but_what_is_compared(scale: Any) -> None:
    ours, adamw = (recipe(scale, kind, scale.widths[1], 0.01, 0) for kind in (OURS, ADAMW))
    for key in ("model", "tokenizer", "data", "precision", "z_loss", "seed"):
        assert getattr(ours, key) == getattr(adamw, key)
    assert ours.stages[0].model_dump(exclude={"weight_decay"}) == adamw.stages[0].model_dump(
        exclude={"weight_decay"}
    )
    assert (ours.optimizer.muparam_base_width, adamw.optimizer.muparam_base_width) == (scale.widths[0], None)


def test_the_rule_is_that_of_the_references() -> None:
    assert largest_difference("float64") < 1e-12
    assert 0 < largest_difference("float32") < 1e-6
