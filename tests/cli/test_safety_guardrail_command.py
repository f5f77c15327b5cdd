"""`pomona safety guardrail`: scoring a text, measuring, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "safety"))
from guarded_model import guarded_model, small_data


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return guarded_model(tmp_path_factory.mktemp("guarded"))


def test_a_text_and_its_answer_are_scored(pomona: Callable[..., Any], model: Path) -> None:
    done = pomona(
        "safety", "guardrail", "score", str(model), "Hello there.", "--answer", "Good day.", "--json"
    )
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert [one["side"] for one in told["verdicts"]] == ["input", "output"]
    for one in told["verdicts"]:
        assert 0 < one["harm"] < 1 and len(one["categories"]) == 12
        assert one["passes"] == (one["refusal"] is None)


def test_the_policy_decides_and_is_shown(pomona: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Hello there.")
    (tmp_path / "policy.yaml").write_text(
        "default: {input: {threshold: 1.0}}\nfeatures: {summarize: {input: {threshold: 0.0}}}\n"
    )
    base = ["safety", "guardrail", "score", str(model), "--input", str(tmp_path / "text.txt")]
    base += ["--policy", str(tmp_path / "policy.yaml")]
    assert "passes" in pomona(*base).out
    assert "refused: I cannot help with this" in pomona(*base, "--feature", "summarize").out


def test_it_is_measured_on_the_sets(pomona: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    data = small_data(tmp_path)
    done = pomona(
        "safety", "guardrail", "evaluate", str(model), "--data", str(data), "--limit", "4", "--json"
    )
    assert done.code == 0, done.err
    sets = json.loads(done.out)["sets"]
    assert [one["name"] for one in sets] == [
        "held-out categories",
        "held-out source",
        "look-alikes",
        "held-out openings",
        "held-out answers",
    ]
    assert all(one["auroc"]["low"] <= one["auroc"]["value"] <= one["auroc"]["high"] for one in sets)
    table = pomona("safety", "guardrail", "evaluate", str(model), "--data", str(data), "--limit", "4")
    assert "look-alikes" in table.out and "AUROC" in table.out


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["score", "MODEL"], "give a TEXT, or --input"),
        (["score", "MODEL", "text", "--input", "file"], "give a TEXT, or --input"),
        (["score", "MODEL", "text", "--guardrail", "nobody"], "no such adapter"),
        (["score", "MODEL", "text", "--policy", "nobody.yaml"], "nobody.yaml"),
        (["train", "MODEL", "--hold-out", "nonsense"], "is no category"),
        (["evaluate", "MODEL", "--data", "nobody"], "is no folder"),
    ],
)
def test_wrong_use_is_one_line(
    pomona: Callable[..., Any], model: Path, arguments: list[str], wrong: str
) -> None:
    done = pomona("safety", "guardrail", *(str(model) if word == "MODEL" else word for word in arguments))
    assert done.code == 2 and wrong in done.err and done.err.count("\n") == 1


def test_without_a_command_the_help_is_shown(pomona: Callable[..., Any]) -> None:
    assert "guardrail" in pomona("safety").out
    assert "evaluate" in pomona("safety", "guardrail").out
