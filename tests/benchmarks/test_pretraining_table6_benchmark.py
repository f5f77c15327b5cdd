"""benchmarks.pretraining_table6: equal cost, what the arms are, how they are judged; all parts in one."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import pretraining
from benchmarks.common import BenchmarkError, Goal, Report
from benchmarks.pretraining_judge import TEMPERATURES, Judgement, by_temperature, judgement
from benchmarks.pretraining_rules import rules
from benchmarks.pretraining_table6 import (
    ALL_IN,
    ARMS,
    BASELINE,
    BOTH,
    DISTILLED,
    FREE,
    FULL,
    LONGER,
    PRUNED,
    QUICK,
    Trial,
    core_steps,
    every_trial,
    flop,
    goals,
    margins,
    notes,
    parent_recipe,
    picture,
    rows,
    student_recipe,
)
from pomona.pretraining.recipe import Recipe

PARENT = Judgement(3.0, 2.9, 1.1, 0.45)
GAIN = {BASELINE: 0.0, PRUNED: -0.2, DISTILLED: 0.1, BOTH: -0.1}


def trial(arm: Any, seed: int) -> Trial:
    loss = 3.5 + GAIN.get(arm.name, 0.0) + 0.01 * seed
    end = Judgement(loss, loss - 0.1, 1.2, 0.3)
    return Trial(arm.name, seed, core_steps(arm, FULL), replace(end, loss=loss + 0.5), end)


@pytest.fixture(scope="module")
def trials() -> list[Trial]:
    return every_trial(trial, 3)


@pytest.mark.parametrize("scale", [FULL, QUICK])
@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_everything_an_arm_spends_adds_up_to_its_cost(scale: Any, arm: Any, tmp_path: Path) -> None:
    """Counted from its recipe: 6 FLOP per weight and token for training, 2 for a teacher's pass."""
    recipe = Recipe.model_validate(student_recipe(arm, scale, 0, tmp_path))
    narrow, wide = flop(scale, scale.narrow), flop(scale, scale.wide)
    spent = 0.0
    for stage in recipe.stages[:-1]:
        width = recipe.config(stage).intermediate_size
        spent += stage.steps * {scale.narrow: narrow, scale.wide: wide}[width]
        spent += stage.steps * wide / 3 if stage.distill and not arm.free else 0.0
    budget = arm.cost * scale.steps * narrow + (scale.parent_steps * wide if arm.parent else 0.0)
    assert spent == pytest.approx(budget, abs=(narrow + wide) / 2)
    assert recipe.result(recipe.stages[-1]).intermediate_size == scale.narrow
    assert recipe.stages[-1].steps == scale.last_steps and recipe.stages[-1].distill is None


def test_students_differ_from_the_parent_in_the_ffn_alone(tmp_path: Path) -> None:
    parent = Recipe.model_validate(parent_recipe(FULL)).model
    for arm in ARMS:
        child = Recipe.model_validate(student_recipe(arm, FULL, 0, tmp_path))
        assert replace(child.model.config(), intermediate_size=FULL.wide) == parent.config()
        assert (child.start is not None) == arm.prune


def test_seeds_change_start_and_order_and_the_parents_is_another(tmp_path: Path) -> None:
    seeds = [student_recipe(ARMS[0], FULL, seed, tmp_path)["seed"] for seed in range(3)]
    assert len({*seeds, parent_recipe(FULL)["seed"]}) == 4


def test_all_arms_with_all_seeds_but_the_long_ones(trials: list[Trial]) -> None:
    for arm in ARMS:
        seeds = [0] if arm.name in (LONGER, ALL_IN) else [0, 1, 2]
        assert [one.seed for one in trials if one.arm == arm.name] == seeds


def test_the_goals_are_the_reports_claims(trials: list[Trial]) -> None:
    assert [goal.value for goal in goals(trials)] == pytest.approx([-0.2, 0.1, 0.1, -0.2])
    assert [goal.met for goal in goals(trials)] == [True, False, False, True]
    assert margins(trials, BOTH, PRUNED) == pytest.approx([0.1, 0.1, 0.1])


def test_the_table_tells_cost_and_seeds(trials: list[Trial]) -> None:
    table = {str(row["students"]): row for row in rows(trials, FULL, PARENT)}
    assert len(table) == len(ARMS) + 1
    assert {table[name]["cost"] for name in (BASELINE, PRUNED, DISTILLED, BOTH)} == {"1.00"}
    assert float(str(table[DISTILLED + FREE]["cost"])) > 1.3
    assert table[BASELINE]["at the end: loss"] == "3.510 (3.500-3.520)"
    assert table[ALL_IN]["seeds"] == "1"
    assert any("both against pruned: +0.100" in line for line in notes(trials, FULL, 3))
    assert "<svg" in picture(trials)


# --- the judge -------------------------------------------------------------------------------------------


def test_the_temperature_is_chosen_on_the_other_half() -> None:
    """Logits twice too sure: the best temperature is about 2, and the loss at it that of the true logits."""
    torch.manual_seed(0)
    true = torch.randn(40, 64, 12)
    labels = torch.distributions.Categorical(logits=true).sample()
    losses = by_temperature(2 * true, labels).numpy()
    found = judgement(losses, np.zeros(40))
    exact = torch.nn.functional.cross_entropy(true.flatten(0, 1), labels.flatten())
    assert found.temperature == pytest.approx(2.0, rel=0.1)
    assert found.tempered == pytest.approx(float(exact), abs=0.01) and found.loss > found.tempered + 0.05
    assert TEMPERATURES[0] == 0.5


def test_a_temperature_that_suits_one_half_alone_costs_the_other() -> None:
    losses = np.full((1 + len(TEMPERATURES), 2), 5.0)
    losses[1, 0], losses[-1, 1] = 1.0, 1.0
    assert judgement(losses, np.ones(2)).tempered == 5.0


# --- all parts -------------------------------------------------------------------------------------------


def test_the_rules_agree_with_their_references() -> None:
    report = rules()
    assert len(report.goals) == 5 and all(goal.met for goal in report.goals)


def options(*words: str) -> argparse.Namespace:
    return pretraining.parser().parse_args(["--threads", "1", *words])


def test_parts_are_run_with_the_same_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def one(part: str, given: argparse.Namespace) -> Report:
        seen.append((part, given.quick))
        if part == "data":
            raise BenchmarkError("POMONA_DATA is not set")
        return Report(part, {"rows": [{"x": part}], "notes": []}, [Goal(part, 1.0, 1.0)])

    monkeypatch.setattr(pretraining, "_report", one)
    report = pretraining.run(options("--quick", "--only", "rules", "table6"))
    assert seen == [("rules", True), ("table6", True)] and [goal.name for goal in report.goals] == [
        "rules",
        "table6",
    ]
    assert "=== table6" in capsys.readouterr().out
    with pytest.raises(BenchmarkError, match="failed: data"):
        pretraining.run(options())
    assert "=== table6" in capsys.readouterr().out  # the others ran
    assert pretraining.run(options("--only", "rules")).results == {"rows": [{"x": "rules"}], "notes": []}


@pytest.mark.slow
def test_the_quick_run_ends_with_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from benchmarks.pretraining_table6 import main

    assert main(["--quick", "--threads", "1", "--plot", str(tmp_path / "plot.svg")]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(found["results"]["trials"]) == len(ARMS) and len(found["goals"]) == 4
    assert (tmp_path / "plot.svg").read_text().startswith("<svg")
