"""benchmarks.adapt: the rows, our side on a tiny model, the figures, and what is said about them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import adapt
from benchmarks.adapt_peer import SETTINGS, Contestant, Setting
from benchmarks.common import BenchmarkError

sys.path.insert(0, str(Path(__file__).parents[1] / "adapters"))
from adapt_samples import tiny_model

FACTS = {
    "weights": 100_000_000,
    "head": 20_000_000,
    **dict.fromkeys(("torch", "trl", "peft", "transformers"), "0"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("adapt") / "tiny")


def test_rows_are_uneven_and_learn_their_answers_alone(model: Path) -> None:
    rows = adapt.training_rows(model, 24)
    lengths = [len(row["ids"]) for row in rows]
    assert len(set(lengths)) > 12 and max(lengths) > 3 * min(lengths)
    for row in rows:
        learnt = row["learnt"]
        assert len(learnt) == len(row["ids"]) and learnt[-1] and not learnt[0]
        assert 0.02 < sum(learnt) / len(learnt) < 0.4
    assert rows == adapt.training_rows(model, 24)


def test_our_side_trains_on_them_and_tells_time_and_memory(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(adapt.training_rows(model, 4)))
    with Contestant(model, path, batch=2, threads=1) as ours:
        assert ours.seconds() > 0
        assert 0.05 < ours.memory_gb() < 8
        assert ours.product_speed() > 1e8
        assert ours.facts["weights"] > 0 and ours.facts["head"] == 288 * 128


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_trl_trains_on_the_same_rows_in_every_setting(model: Path, tmp_path: Path, setting: Setting) -> None:
    pytest.importorskip("trl")
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(adapt.training_rows(model, 4)))
    with Contestant(model, path, batch=2, threads=1, setting=setting) as theirs:
        assert theirs.seconds() > 0
        assert theirs.facts["trl"]


class StandIn:
    """A contestant that takes as long as it is told."""

    def __init__(self, model: Path, rows: Path, *, batch: int, threads: int, setting: Any = None) -> None:
        self.setting = setting
        self.facts: dict[str, Any] = dict(FACTS)
        assert len(json.loads(rows.read_text())) % batch == 0

    def seconds(self) -> float:
        if self.setting is None:
            return 2.0
        return 6.0 if self.setting == Setting("float32", "padded") else 9.0

    def memory_gb(self) -> float:
        return 1.5 if self.setting is None else 3.0

    def product_speed(self) -> float:
        return 1e11

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("quick", [True, False])
def test_the_fastest_setting_of_trl_is_the_peer(
    model: Path, monkeypatch: pytest.MonkeyPatch, quick: bool
) -> None:
    monkeypatch.setattr(adapt, "Contestant", StandIn)
    words = ["--model", str(model), "--threads", "1", *(["--quick"] if quick else [])]
    report = adapt.run(adapt.parser().parse_args(words))
    ours, theirs = report.results["rows"]
    assert (ours["trainer"], theirs["trainer"]) == ("pomona", "TRL, float32, padded")
    assert ours["tokens/s"] == pytest.approx(3 * theirs["tokens/s"])
    assert (ours["peak memory, GB"], theirs["peak memory, GB"]) == (1.5, 3.0)
    assert len(report.results["tried_seconds"]) == (2 if quick else 6)
    (goal,) = report.goals
    assert (goal.value, goal.met) == (3.0, True)
    notes = " ".join(report.results["notes"])
    assert "What bounds ours" in notes and "kept: float32, padded" in notes
    json.dumps(report.to_json())


def test_without_trl_it_says_what_to_install(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "trl.py").write_text("raise ImportError('no trl')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hidden"), prepend=":")
    path = tmp_path / "rows.json"
    path.write_text("[]")
    with pytest.raises(BenchmarkError, match=r"pip install 'pomona\[train\]'"):
        Contestant(model, path, batch=1, threads=1, setting=SETTINGS[0])
