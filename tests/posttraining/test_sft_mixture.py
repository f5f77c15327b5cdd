"""The perturbation rule on functions whose best mixture is known, drawing rows, and trials that go on."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest

from pomona.adapters.data import Row, read_rows
from pomona.errors import PomonaError
from pomona.posttraining.mixture import (
    MixtureOptions,
    Trial,
    Weights,
    draw,
    read_mixture,
    read_sft_data,
    shares,
    tune_mixture,
    write_mixture,
)
from pomona.posttraining.mixture_trials import SftTrials
from pomona.posttraining.options import SftOptions
from tests.adapters.adapt_samples import chat, colours, write_rows
from tests.posttraining.conftest import QUICK

MIXTURE = (
    "components:\n- {name: a, file: a.jsonl, weight: 3}\n- {name: b, file: b.jsonl, weight: 1}\nrows: 8\n"
)


def rows(name: str, count: int) -> list[Row]:
    return [Row(i, ({"role": "user", "content": f"{name}{i}"},), source=name) for i in range(count)]


def test_weights_move_towards_the_best_mixture_and_what_has_no_effect_is_dropped() -> None:
    def score(weights: Weights) -> float:
        # `chat` helps, `noise` harms, `idle` only matters by what it takes from the others: nothing here.
        share = weights["chat"] + weights["noise"]
        return (weights["noise"] / share) ** 2 if share else 1.0

    start = {"chat": 1.0, "noise": 1.0, "idle": 1.0}
    report = tune_mixture(start, score, MixtureOptions(rounds=6, drop_below=1e-9))
    assert report.dropped == ["idle"] and report.weights["idle"] == 0.0
    assert report.weights["chat"] > 0.9 > report.weights["noise"]
    assert report.last < report.first / 10
    assert sum(report.weights.values()) == pytest.approx(1.0)
    first = [trial.what for trial in report.trials[:7]]
    assert first == ["start", "chat up", "chat down", "noise up", "noise down", "idle up", "idle down"]


def test_a_round_that_makes_it_worse_is_taken_back_with_half_the_step() -> None:
    def score(weights: Weights) -> float:
        return 0.0 if weights["a"] == 0.5 else 2.0 - weights["a"]  # more of `a` seems better, and is not

    seen: list[Trial] = []
    report = tune_mixture(
        {"a": 1, "b": 1}, score, MixtureOptions(rounds=2, drop_below=0.0), on_trial=seen.append
    )
    assert report.weights == {"a": 0.5, "b": 0.5} and report.last == report.first == 0.0
    ups = [trial.weights["a"] for trial in seen if trial.what == "a up"]
    assert ups == [pytest.approx(0.75 / 1.25), pytest.approx(0.625 / 1.125)]


def test_one_component_always_stays_and_a_score_that_is_no_number_stops() -> None:
    report = tune_mixture({"a": 1, "b": 1}, lambda _: 1.0, MixtureOptions(drop_below=1.0))
    assert report.dropped == [] and sum(report.weights.values()) == pytest.approx(1.0)
    with pytest.raises(PomonaError, match="start is no number"):
        tune_mixture({"a": 1}, lambda _: math.nan, MixtureOptions())
    with pytest.raises(PomonaError, match="no weight is above 0"):
        tune_mixture({"a": 0}, lambda _: 1.0, MixtureOptions())


def test_rows_are_drawn_by_their_weights_and_repeated_only_where_too_few() -> None:
    parts = {"a": rows("a", 3), "b": rows("b", 100)}
    drawn = draw(parts, {"a": 0.25, "b": 0.75}, 40, seed=1)
    assert Counter(row.source for row in drawn) == {"a": 10, "b": 30}
    assert [row.line for row in drawn] == list(range(1, 41))
    counts = Counter(row.messages[0]["content"] for row in drawn)
    assert max(counts[f"b{i}"] for i in range(100)) == 1
    assert sorted(counts[f"a{i}"] for i in range(3)) == [3, 3, 4]
    assert draw(parts, {"a": 0.25, "b": 0.75}, 40, seed=1) == drawn
    fewer = draw(parts, {"a": 0.5, "b": 0.5}, 40, seed=1)
    assert {row.key for row in fewer} <= {row.key for row in drawn}
    assert shares({"a": 1, "b": 1, "c": 1}, 10) == {"a": 4, "b": 3, "c": 3}


def test_a_mixture_file_is_read_drawn_from_and_written_again(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [chat(f"a{i}", "x") for i in range(4)])
    write_rows(tmp_path / "b.jsonl", [chat(f"b{i}", "x") for i in range(4)])
    path = tmp_path / "m.yaml"
    path.write_text(MIXTURE)
    found, report = read_sft_data(path, seed=0)
    assert Counter(row.messages[0]["content"][0] for row in found) == {"a": 6, "b": 2}
    assert report.read == 8 and report.file == "m.yaml" and len(report.sha256) == 64
    mixture = read_mixture(path)
    write_mixture(tmp_path / "n.yaml", mixture, {"a": 1.0, "b": 0.0})
    assert read_mixture(tmp_path / "n.yaml").weights == {"a": 1.0}
    path.write_text(MIXTURE.replace("name: b", "name: a"))
    with pytest.raises(PomonaError, match="one name"):
        read_mixture(path)
    path.write_text(MIXTURE)
    write_rows(tmp_path / "a.jsonl", ["{}"])
    with pytest.raises(PomonaError, match=r"a.jsonl: 1 of 1 rows"):
        read_sft_data(path, seed=0)


def test_trials_prefer_the_component_of_the_benchmark_and_are_not_made_twice(
    tiny_dir: Path, tmp_path: Path
) -> None:
    right = read_rows(write_rows(tmp_path / "a.jsonl", colours(8)))[0]
    wrong = read_rows(write_rows(tmp_path / "b.jsonl", [chat(f"{i} sky?", "zzz") for i in range(24)]))[0]
    judged = read_rows(write_rows(tmp_path / "c.jsonl", colours(12)[-9:]))[0]
    options = MixtureOptions(rows=24, sft=SftOptions(**{**QUICK, "lr": 1e-2}, epochs=1, validation=0.0))

    def trials() -> SftTrials:
        return SftTrials(
            tiny_dir, {"right": right, "wrong": wrong}, {"c": judged}, options, tmp_path / "w", threads=1
        )

    made = trials()
    good, bad = (made.score({"right": w, "wrong": 1 - w}) for w in (0.9, 0.1))
    assert good < bad and made.made == 2
    assert not list(made.folder.glob("checkpoint-*"))
    again = trials()
    assert again.score({"right": 0.9, "wrong": 1 - 0.9}) == good and again.made == 0
    with pytest.raises(PomonaError, match="are trained on"):
        SftTrials(tiny_dir, {"right": right}, {"c": right}, options, tmp_path / "w", threads=1)
