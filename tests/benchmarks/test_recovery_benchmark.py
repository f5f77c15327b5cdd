"""The benchmark of the recovery table: its rows and goals, out of a table that is not measured here."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from benchmarks import evaluation_recovery as benchmark
from pomona.adapters.metrics import Interval
from pomona.evaluation import recovery_table
from pomona.evaluation.recovery_table import OPEN, Cell, RecoveryTable, Row


def row(kind: str, percents: dict[str, float | None]) -> Row:
    columns = {
        task: Cell(Interval(0.5, 0.4, 0.6, 9), None if value is None else Interval(value, 1.0, OPEN, 9))
        for task, value in percents.items()
    }
    return Row("m", kind, None, None, "f", 4.1, 1.0, columns)


def test_the_goals_are_of_the_recovered_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = RecoveryTable(
        (
            row("16 bit", {"ifeval": None, "qmsum": None, "gsm8k_cot": None}),
            row("compressed", {"ifeval": 100.0, "qmsum": 100.0, "gsm8k_cot": 100.0}),
            row("recovered", {"ifeval": 99.0, "qmsum": 90.0, "gsm8k_cot": OPEN}),
        ),
        {"ifeval": 9, "qmsum": 9, "gsm8k_cot": 9},
        False,
        24,
        "2026-01-01",
    )
    asked: dict[str, Any] = {}

    def measured(chosen: Any, **options: Any) -> RecoveryTable:
        asked.update(options, chosen=chosen)
        return table

    monkeypatch.setattr(recovery_table, "measure", measured)
    monkeypatch.setattr(recovery_table, "contenders", lambda reference, models: [reference, *models])
    options = argparse.Namespace(
        quick=True, model=["a", "b"], reference="r", work=None, data=tmp_path, threads=1, json=None
    )
    report = benchmark.run(options)
    assert asked["chosen"] == ["r", "a"]  # the quick run takes the first model alone
    assert [goal.met for goal in report.goals] == [True, False, False]
    assert report.goals[2].value is None  # no percentage of nothing
    assert len(report.results["rows"]) == 3 and report.results["table"]["limits"]["ifeval"] == 9
