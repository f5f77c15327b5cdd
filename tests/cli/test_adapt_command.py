"""`pomona adapt`: what reaches the trainer, what is shown before and meanwhile, what is said at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from pomona.adapters.data import DataReport, Problem
from pomona.adapters.options import AdaptOptions, AdaptPoint
from pomona.adapters.plan import Plan
from pomona.cli import adapt as command_module
from pomona.compression.training.options import LoopOptions
from pomona.errors import PomonaError

Command = Callable[..., Any]
POINT = AdaptPoint(4, 16_384, 40.0, 1.4, 1.31, 0.72, 1e-3, 210.0)
PLAN = Plan(
    rows=90,
    held_out_rows=10,
    tokens=9_000,
    answer_tokens=3_000,
    held_out_tokens=1_000,
    longest=300,
    window=1024,
    start="zero",
    start_note="the base has no recovery adapter",
    loop=LoopOptions(batch=8, accumulate=1, passes=5, lr=5e-4),
    memory_bytes=2_000_000_000,
    seconds=600.0,
    evaluations=14,
)
DATA = DataReport("notes.jsonl", "0" * 64, read=101, problems=[Problem("empty", 7, "message 2 has no text")])


@dataclass(frozen=True)
class FakeStep:
    step: int = 3
    total: int = 56
    loss: float = 1.5
    tokens: int = 400
    seconds: float = 2.0
    seconds_left: float | None = 300.0


@dataclass(frozen=True)
class FakeReport:
    directory: Path | None
    name: str = "notes"
    start_loss: float | None = 2.5
    loss: float | None = 1.2
    last_loss: float | None = 1.21
    start_accuracy: float | None = 0.6
    accuracy: float | None = 0.8
    tokens: int = 45_000
    seconds: float = 600.0
    stopped: str | None = "done"

    def to_json(self) -> dict[str, Any]:
        return {"version": 1, "loss": self.loss}


@dataclass
class Adaptations:
    calls: list[dict[str, Any]] = field(default_factory=list)
    report: FakeReport = FakeReport(Path("adapter"))
    refusal: PomonaError | None = None


@pytest.fixture
def adaptations(
    fake_module: Callable[..., None], put_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Adaptations:
    """What the trainer was asked, and what it will answer. The cache has `small`."""
    found = Adaptations()

    def adapt(
        base: Path,
        data: Path,
        *,
        progress: Any,
        on_data: Any,
        on_plan: Any,
        on_point: Any,
        on_step: Any,
        **options: Any,
    ) -> FakeReport:
        progress("encode rows", 0, 2)
        on_data(DATA)
        if found.refusal is not None:
            raise found.refusal
        on_plan(PLAN)
        on_step(FakeStep())
        progress("train", 1, 2)
        on_point(POINT, 300.0)
        found.calls.append({"base": base, "data": data, **options})
        return found.report

    fake_module("pomona.adapters.adapt", adapt=adapt)
    monkeypatch.setattr(command_module, "_QUIET_SECONDS", 0.0)
    put_model("small")
    return found


def test_by_default_the_adapter_goes_into_the_base(
    pomona: Command, adaptations: Adaptations, cli_models: Path
) -> None:
    outcome = pomona("adapt", "small", "notes.jsonl")
    assert outcome.code == 0, outcome.err
    assert adaptations.calls == [
        {
            "base": cli_models / "small",
            "data": Path("notes.jsonl"),
            "work": cli_models.parent / "adapt",
            "name": None,
            "task": None,
            "options": AdaptOptions(),
            "target": None,
            "start_from": None,
            "skip_bad": False,
            "dry_run": False,
            "resume": False,
            "restart": False,
            "overwrite": False,
            "threads": None,
        }
    ]
    for words in ("1.2000 nats per token, before 2.5000", "80.0%", "45,000 tokens in 10.0 minutes (done)"):
        assert words in outcome.out
    assert outcome.out.endswith("Try: pomona.load('small').session(adapter='notes')\n")


def test_rows_plan_and_loss_are_shown_as_they_come(pomona: Command, adaptations: Adaptations) -> None:
    err = pomona("adapt", "small", "notes.jsonl").err
    shown = [
        "bad: empty                1  line 7",
        "90 to learn, 10 held out",
        "9,000, of which 3,000 are learnt",
        "zero: the base has no recovery adapter",
        "rank 16, 5 epochs, 8 rows a step, 56 steps, learning rate 0.0005",
        "about 2 GB",
        "about 10.0 minutes, 14 evaluations included",
        "step 3/56, loss 1.5000, 200 tokens/s, 5 minutes left\n",
        "step 4, validation loss 1.3100, training loss 1.4000, right tokens 72.0%, 210 tokens/s, 5 minutes",
    ]
    places = [err.find(words) for words in shown]
    assert -1 not in places, shown[places.index(-1)]
    assert places == sorted(places)
    assert "train ..." not in err  # the loss line says it


def test_every_option_reaches_the_trainer(pomona: Command, adaptations: Adaptations, tmp_path: Path) -> None:
    line = (
        "--name n --task t --rank 8 --lr 0.002 --epochs 4 --batch 6 --window 256 --schedule constant "
        "--warm-up 0.1 --validation 0.2 --patience 2 --minutes 2.5 --seed 3 --skip-bad --resume "
        f"--work {tmp_path} --out x --threads 2 --overwrite"
    )
    assert pomona("adapt", "small", "notes.jsonl", *line.split()).code == 0
    (call,) = adaptations.calls
    assert call["options"] == AdaptOptions(
        rank=8,
        lr=0.002,
        epochs=4,
        batch=6,
        window=256,
        schedule="constant",
        warm_up=0.1,
        validation=0.2,
        patience=2,
        minutes=2.5,
        seed=3,
    )
    assert (call["name"], call["task"], call["target"]) == ("n", "t", Path("x"))
    assert (call["work"], call["threads"]) == (tmp_path, 2)
    assert (call["resume"], call["restart"], call["overwrite"]) == (True, False, True)
    assert (call["skip_bad"], call["dry_run"]) == (True, False)


def test_a_dry_run_trains_nothing_and_says_so(pomona: Command, adaptations: Adaptations) -> None:
    adaptations.report = FakeReport(None, start_loss=None, loss=None, last_loss=None)
    outcome = pomona("adapt", "small", "notes.jsonl", "--dry-run")
    assert outcome.code == 0 and outcome.out == "nothing was trained\n"
    assert adaptations.calls[0]["dry_run"] and "WARNING" not in outcome.err


def test_the_checks_are_shown_before_bad_rows_are_refused(pomona: Command, adaptations: Adaptations) -> None:
    adaptations.refusal = PomonaError("notes.jsonl: 1 of 101 rows; --skip-bad")
    outcome = pomona("adapt", "small", "notes.jsonl")
    assert outcome.code == 2 and "line 7" in outcome.err and "--skip-bad" in outcome.err


def test_json_is_the_report_alone(pomona: Command, adaptations: Adaptations) -> None:
    assert pomona("adapt", "small", "notes.jsonl", "--json").json == adaptations.report.to_json()


def test_a_run_that_gained_nothing_or_ended_worse_is_said_loudly(
    pomona: Command, adaptations: Adaptations
) -> None:
    adaptations.report = replace(adaptations.report, directory=None, loss=2.5, last_loss=2.7)
    outcome = pomona("adapt", "small", "notes.jsonl")
    assert outcome.code == 0 and "Try:" not in outcome.out
    assert "WARNING: the validation loss did not fall below its start, 2.5000" in outcome.err
    adaptations.report = FakeReport(Path("adapter"), last_loss=2.7)
    outcome = pomona("adapt", "small", "notes.jsonl")
    assert "WARNING: the run ended worse than it started (2.7000 after 2.5000)" in outcome.err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--resume", "--restart"), "--resume and --restart"),
        (("--rank", "0"), "--rank"),
        (("--lr", "0"), "lr = 0.0"),
        (("--window", "8"), "--window"),
        (("--schedule", "linear"), "--schedule"),
        (("--validation", "0"), "validation 0.0"),
        (("--warm-up", "1"), "warm_up = 1.0"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(
    pomona: Command, adaptations: Adaptations, options: tuple[str, ...], complaint: str
) -> None:
    outcome = pomona("adapt", "small", "notes.jsonl", *options)
    assert outcome.code == 2
    assert complaint in outcome.err
    assert adaptations.calls == []


def test_rows_must_be_given(pomona: Command, adaptations: Adaptations) -> None:
    outcome = pomona("adapt", "small")
    assert outcome.code == 2 and "DATA" in outcome.err
