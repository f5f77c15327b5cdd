"""Results of suites: rows, weights, files that are read back, two results held against each other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pomona.errors import PomonaError
from pomona.evaluation.results import EvalResult, TaskResult, compare, shown, write_result


def result(values: dict[str, list[float]], **more: object) -> EvalResult:
    tasks = tuple(
        TaskResult(name, "acc,none", 5, "1.0", {str(i): value for i, value in enumerate(items)})
        for name, items in values.items()
    )
    one = EvalResult("core", "m", "f", None, None, False, None, "0.4", "2026-01-01", 1.0, tasks)
    return replace(one, **more)  # type: ignore[arg-type]


def test_subjects_of_mmlu_are_one_row_by_items() -> None:
    found = result({"piqa": [1, 0], "mmlu_anatomy": [1, 1, 1], "mmlu_virology": [0]})
    assert found.table() == [("piqa", 0.5), ("mmlu", 0.75)]
    assert found.average == pytest.approx(0.625)


def test_two_results_are_compared_on_the_items_that_both_have() -> None:
    ours, theirs = result({"piqa": [1.0] * 30 + [0.0]}), result({"piqa": [0.0] * 30})
    [(row, gain)] = compare(ours, theirs).items()
    assert (row, gain.value, gain.low, gain.rows) == ("piqa", 1.0, 1.0, 30)
    with pytest.raises(PomonaError, match="no item in common"):
        compare(ours, result({"gsm8k": [1.0]}))
    [line] = shown([(row, gain)], "+")
    assert line.startswith("piqa  +100.00%") and "30 items" in line


def test_other_shots_are_other_items() -> None:
    ours = result({"piqa": [1.0]})
    other = replace(ours, tasks=(replace(ours.tasks[0], shots=0),))
    with pytest.raises(PomonaError, match="no item in common"):
        compare(ours, other)


def test_a_result_is_written_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_result(one := result({"piqa": [1.0, 0.0]}, adapter="recovery", limit=2), path)
    assert EvalResult.read(path) == one
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.pop("tasks"),
        lambda raw: raw.update(tasks=3),
        lambda raw: raw.update(tasks=[]),
        lambda raw: raw["tasks"][0].update(items={}),
        lambda raw: raw["tasks"][0].update(items={"0": "high"}),
        lambda raw: raw["tasks"][0].pop("metric"),
        lambda raw: raw.pop("model"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, change: object) -> None:
    raw = json.loads(json.dumps(result({"piqa": [1.0]}).to_json()))
    change(raw)  # type: ignore[operator]
    path = tmp_path / "result.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(PomonaError, match=r"result\.json"):
        EvalResult.read(path)


def weighted(values: dict[str, tuple[float, float]]) -> EvalResult:
    """Item -> (share of its instructions that are followed, their number)."""
    items = {key: value for key, (value, _) in values.items()}
    weights = {key: weight for key, (_, weight) in values.items()}
    tasks = (
        TaskResult("ifeval", "prompt_strict", 0, "1", {key: float(v == 1.0) for key, v in items.items()}),
        TaskResult("ifeval", "instruction_strict", 0, "1", items, weights, main=False),
    )
    return replace(result({"piqa": [1.0]}), tasks=tasks)


def test_an_item_counts_by_its_weight() -> None:
    """One instruction of one, and one of three: two of four, not two thirds."""
    found = dict(weighted({"a": (1.0, 1.0), "b": (1 / 3, 3.0)}).rows())
    assert found["ifeval instruction_strict"].value == pytest.approx(0.5)
    assert found["ifeval"].value == pytest.approx(0.5)


def test_only_main_metrics_make_the_average() -> None:
    one = weighted({"a": (1.0, 1.0), "b": (0.0, 3.0)})
    assert one.table() == [("ifeval", 0.5)] and one.average == 0.5


def test_weights_are_paired_with_their_items() -> None:
    ours, theirs = weighted({"a": (1.0, 1.0), "b": (1.0, 3.0)}), weighted({"a": (1.0, 1.0), "b": (0.0, 3.0)})
    assert compare(ours, theirs)["ifeval instruction_strict"].value == pytest.approx(0.75)


def test_a_result_without_the_newer_keys_is_read(tmp_path: Path) -> None:
    raw = json.loads(json.dumps(result({"piqa": [1.0]}).to_json()))
    for key in ("samples", "temperature", "max_new_tokens", "source", "left_out"):
        raw.pop(key)
    for task in raw["tasks"]:
        for key in ("weights", "main", "answers"):
            task.pop(key)
    path = tmp_path / "old.json"
    path.write_text(json.dumps(raw))
    assert EvalResult.read(path) == result({"piqa": [1.0]})


@pytest.mark.parametrize("weights", [{"0": 0.0}, {"0": -1.0}, {"0": 1e999}])
def test_a_weight_that_is_none_is_refused(tmp_path: Path, weights: dict[str, float]) -> None:
    raw = json.loads(json.dumps(result({"piqa": [1.0]}).to_json()))
    raw["tasks"][0]["weights"] = weights
    path = tmp_path / "result.json"
    path.write_text(json.dumps(raw).replace("Infinity", "1e999"))
    with pytest.raises(PomonaError, match=r"result\.json"):
        EvalResult.read(path)
