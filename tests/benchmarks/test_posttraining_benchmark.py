"""The post-training benchmarks: what they derive by hand, their rows, and the peers' far end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import posttraining, posttraining_mdloo
from benchmarks.common import BenchmarkError
from benchmarks.peer import ROOT
from benchmarks.posttraining_equations import drift, hand_gap, hand_gradient, library_gradient
from benchmarks.posttraining_ifeval import Answers, Judge, points_between
from benchmarks.posttraining_itec import rows_of_rounds
from benchmarks.rollout_peer import GeneratePeer
from pomona.adapters.metrics import Interval
from pomona.evaluation.ifeval import Case, Instruction
from pomona.posttraining.prompts import Prompt


@pytest.mark.parametrize("estimator", ["exact", "sampled"])
def test_the_gradients_agree_and_the_comparison_would_notice(estimator: str) -> None:
    assert hand_gap(estimator) < 1e-8
    rng = np.random.default_rng(0)
    old = rng.standard_normal((2, 5))
    theta, tokens = old + 0.5, rng.integers(0, 5, (6, 2))
    theta[0, 0] += 1
    advantage = rng.standard_normal(6)
    other = hand_gradient(theta, old, tokens, advantage, estimator, 0.5)
    assert np.abs(library_gradient(theta, old, tokens, advantage, estimator, 0.3) - other).max() > 1e-3


def test_gamma_bounds_the_drift() -> None:
    kl, limit = drift(2.0, steps=200)
    assert kl == pytest.approx(limit, rel=0.01)
    assert drift(0.0, steps=200)[0] > 5 * kl


@pytest.mark.parametrize("module", ["posttraining", "posttraining_mdloo"])
def test_each_explains_itself(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--quick" in done.stdout and "--threads" in done.stdout


def test_nothing_to_do_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert posttraining.main(["--quick", "--skip", *posttraining.PARTS]) == 2
    assert "left out" in capsys.readouterr().err


def test_ifeval_is_needed_and_said_to_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("POMONA_DATA", raising=False)
    assert posttraining_mdloo.main(["--quick"]) == 2
    assert "POMONA_DATA" in capsys.readouterr().err


def test_a_row_tells_of_a_method_with_its_intervals() -> None:
    result = SimpleNamespace(value=lambda measure: 0.25, interval=lambda measure: (0.2, 0.3))
    answers = Answers(result, 0.5, 120.0)
    iterations = [SimpleNamespace(reward=value, kl_reference=1.5) for value in (0.1, 0.2, 0.3, 0.4, 0.9)]
    row = posttraining_mdloo._row(
        "mdloo", SimpleNamespace(iterations=iterations), answers, Interval(5.0, -1.0, 10.0, 4)
    )
    assert row["training reward, first and last fifth"] == "0.100 0.900"
    assert row["IFEval strict, prompts"] == "25.0% (20.0 .. 30.0)"
    assert row["points"] == "+5.0 (-1.0 .. +10.0)"
    assert set(posttraining_mdloo._row("start", None, answers, None)) == set(row)


def test_points_between_methods_are_of_each_prompts_mean_over_seeds() -> None:
    def result(*followed: bool) -> SimpleNamespace:
        return SimpleNamespace(strict=[(one, True) for one in followed])

    start = [result(False, False, True, False)] * 2
    trained = [result(True, False, True, False), result(True, True, True, False)]
    found = points_between(trained, start)
    assert found.value == pytest.approx(37.5) and found.low <= found.value <= found.high
    assert points_between(start, start).high == 0


def test_answers_are_kept_and_belong_to_what_was_asked(tmp_path: Path) -> None:
    instruction = Instruction("punctuation:no_comma", ({"check": "no_comma"},))
    cases = [Case("1", "Say it without commas.", (instruction,))]
    held_out = [Prompt(({"role": "user", "content": "No commas!"},), ({"check": "no_comma"},))]
    asked = []

    class Silent(Judge):
        def ask(self, adapter: Path | None) -> list[str]:
            asked.append(adapter)
            return ["one, two", "three"]

    kept = tmp_path / "start.answers.json"
    first = Silent(tmp_path, cases, held_out, 8, 1).answers(None, kept)
    again = Silent(tmp_path, cases, held_out, 8, 1).answers(None, kept)
    assert asked == [None]
    assert first == again and first.ifeval.value("prompt_strict") == 0 and first.reward == 1
    with pytest.raises(BenchmarkError, match="--work"):
        Silent(tmp_path, cases, held_out, 9, 1).answers(None, kept)


def test_a_training_is_taken_from_its_folder_only_if_it_is_the_same(tmp_path: Path) -> None:
    kept = tmp_path / "mdloo-0.json"
    kept.write_text(json.dumps({"base": "one", "options": {"informative": None}, "report": {}}))
    for other in ({"base": "one", "options": {"informative": 4}}, {"base": "two", "options": {}}):
        with pytest.raises(BenchmarkError, match="--work"):
            posttraining_mdloo._kept(kept, other)


def test_rounds_of_the_committee_are_told_with_the_student_beside_each_member(tmp_path: Path) -> None:
    folder = tmp_path / "round-01"
    folder.mkdir()
    responses = [{"prompt": p, "member": m, "text": "x"} for p in range(3) for m in ("start", "dpo-0")]
    (folder / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in responses))
    (folder / "scores.json").write_text(json.dumps({"rewards": [0, 1, 0.5, None, 0, 0]}))
    members = [{"name": "start", "reward": 0.25}, {"name": "rs-1", "reward": 0.75}]
    by_prompt = {"start": [0, 0.5], "rs-1": [1, 0.5]}
    evaluated = {"measured": members, "by_prompt": by_prompt, "committee": members[1:]}
    (folder / "committee.json").write_text(json.dumps(evaluated))
    picks, start, student = rows_of_rounds(tmp_path, 1)
    assert picks["value"].startswith("0.500 (") and "of all 6 responses of 2 members 0.300" in picks["beside"]
    assert start["value"].startswith("0.250 (") and start["beside"].startswith("student less it +0.500 (")
    assert student["beside"] == "the distilled student, next committee"
    del by_prompt["rs-1"], members[1]
    (folder / "committee.json").write_text(json.dumps({**evaluated, "measured": members, "committee": []}))
    assert rows_of_rounds(tmp_path, 1)[1]["beside"] == "no student came out of this round"


@pytest.mark.slow
def test_transformers_counts_the_tokens_up_to_each_end(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "tests" / "adapters"))
    from adapt_samples import tiny_model

    base = tiny_model(tmp_path / "tiny")
    (base / "generation_config.json").write_text('{"eos_token_id": 257}')
    with GeneratePeer(sys.executable, base, threads=1) as peer:
        seconds, tokens = peer.sample([[65, 66], [67]], 3, 20, 1, dtype="float32", batch=4)
        assert seconds > 0 and 6 <= tokens <= 6 * 20
        assert "transformers" in peer.facts
