"""`pomona pretrain` and `pomona pretrain plan`: what reaches the run, what is printed, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pomona.cli import pretrain as command_module
from pomona.cli.main import main
from pomona.pretraining import pretrain as pretrain_module
from pomona.pretraining.curve import Point
from pomona.pretraining.prepare import Prepared
from pomona.pretraining.pretrain import RunReport, StageReport
from pomona.pretraining.recipe import StageSettings, load_recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
NANO = str(RECIPES / "laptop" / "afm-nano.yaml")

REPORT = RunReport(
    model=Path("runs/nano/model"),
    gguf=Path("runs/nano/model.gguf"),
    parameters=9_400_000,
    vocab_size=4096,
    stages=(StageReport("core", 586, 2_400_256, 1, 4.1, 4.2, 2500.0, 0.31, 960.0),),
    sample="Once upon a time there was\na girl.",
    left_out=("prose",),
)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What reaches `pretrain`; the run that it stands for tells one step."""
    seen: dict[str, Any] = {}

    def run(recipe: Any, out: Path, **options: Any) -> RunReport:
        seen.update(options, recipe=recipe, out=out)
        options["on_start"](Prepared(Path("t"), {}, {}, ("prose",), {}))
        options["on_point"](recipe.stages[0], Point(3, 768, 5.25, 30.0, 0.9, 0.01, 1, 5.5, 2500.0, 0.31, 0.3))
        return REPORT

    monkeypatch.setattr(pretrain_module, "pretrain", run)
    monkeypatch.setattr(pretrain_module, "use_threads", lambda threads: seen.update(threads=threads))
    return seen


def test_the_recipe_needs_no_word_before_it(
    called: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", NANO, "--out", "runs/x", "--gguf", "--resume", "--threads", "2"]) == 0
    assert called["recipe"].name == "afm-nano"
    assert (called["out"], called["gguf"], called["resume"], called["restart"]) == (
        Path("runs/x"),
        True,
        True,
        False,
    )
    assert called["threads"] == 2
    out, err = capsys.readouterr()
    assert "core" in out and "31%" in out and "9.4 M parameters" in out and "model.gguf" in out
    assert "Once upon a time there was a girl." in out
    assert "source prose: its text is not here" in err
    assert "step 3: validation loss 5.5000" in err and "DROPPED" in err and "2,500 tokens/s" in err


def test_options_may_come_first_and_the_folder_is_named_after_the_recipe(called: dict[str, Any]) -> None:
    assert main(["pretrain", "--restart", NANO]) == 0
    assert called["out"] == Path("runs/afm-nano") and called["restart"]


def test_json_is_one_object(called: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", NANO, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["stages"][0]["validation_loss"] == 4.2 and found["left_out"] == ["prose"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([NANO, "--resume", "--restart"], "give one"),
        (["nowhere.yaml"], "give the path of a recipe"),
        ([NANO, "--fast"], "--fast"),
        (["plan"], "either --model or --recipe"),
        (["plan", "--model", "afm-on-device", "--recipe", NANO], "either --model or --recipe"),
        (["plan", "--model", "afm-giant"], "afm-giant"),
        (["plan", "--model", "afm-on-device", "--devices", "64xToaster"], "64xToaster"),
        (["plan", "--model", "afm-on-device", "--utilisation", "2"], "utilisation"),
    ],
)
def test_what_is_wrong_is_said(
    called: dict[str, Any], capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["pretrain", *words]) == 2
    assert said in capsys.readouterr().err


def test_the_plan_of_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "plan", "--model", "afm-on-device", "--devices", "64xH100"]) == 0
    out = capsys.readouterr().out
    for text in (
        "core",
        "continued",
        "lengthening",
        "2.738 B",
        "64 x H100",
        "40% of that",
        "fits",
        "32.9 GB",
    ):
        assert text in out


@pytest.mark.parametrize(
    "name",
    [
        *("report/afm-on-device.yaml", "report/afm-server.yaml", "laptop/afm-nano.yaml"),
        *("report/parent.yaml", "report/pruned-on-device.yaml", "laptop/pruned-nano.yaml"),
    ],
)
def test_every_recipe_can_be_planned(capsys: pytest.CaptureFixture[str], name: str) -> None:
    words = ["pretrain", "plan", "--recipe", str(RECIPES / name), "--devices", "512xB200", "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in found["stages"]] == [
        stage.name for stage in load_recipe(RECIPES / name).stages
    ]
    assert found["days"] > 0 and found["fits"] is True


def test_the_line_is_quiet_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    stage: StageSettings = load_recipe(Path(NANO)).stages[0]
    line: Any = command_module.CurveLine()
    show: Callable[[StageSettings, Point], None] = line.show
    for step in range(1, 50):
        show(stage, Point(step, step, 5.0, None, 1.0, 0.01, 0, None))
    assert len(capsys.readouterr().err.splitlines()) <= 2


def test_a_plan_counts_the_width_that_pruning_leaves(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["pretrain", "plan", "--recipe", str(RECIPES / "report" / "pruned-on-device.yaml"), "--json"]
    assert main(words) == 0
    masks, core, *_ = json.loads(capsys.readouterr().out)["stages"]
    assert masks["flop_per_token"] > 2 * core["flop_per_token"]
