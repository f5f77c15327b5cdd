"""`pomona recover`: what reaches the trainer, where the result goes, what is said when it does not help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from pomona.compression.recovery_text import TextOptions
from pomona.compression.training.options import Point, TrainOptions

Command = Callable[..., Any]
POINT = Point(4, 16_384, 40.0, 0.4, 0.31, 0.72, 1e-3, 410.0)


@dataclass(frozen=True)
class FakeReport:
    directory: Path | None
    start_kl: float = 0.5
    kl: float = 0.2
    last_kl: float = 0.21
    start_same_top: float = 0.6
    same_top: float = 0.8
    tokens: int = 409_600
    seconds: float = 900.0
    stopped: str = "done"
    closed: float = 0.6

    def to_json(self) -> dict[str, Any]:
        return {"version": 1, **asdict(self)}


@dataclass
class Recoveries:
    calls: list[dict[str, Any]] = field(default_factory=list)
    report: FakeReport = FakeReport(Path("adapter"))


@pytest.fixture
def recoveries(fake_module: Callable[..., None], put_model: Callable[..., Path]) -> Recoveries:
    """What the trainer was asked, and what it will answer. The cache has `small` and `big`."""
    found = Recoveries()

    def recover(base: Path, teacher: Path, *, progress: Any, on_point: Any, **options: Any) -> FakeReport:
        progress("train", 1, 2)
        on_point(POINT, 300.0)
        found.calls.append({"base": base, "teacher": teacher, **options})
        return found.report

    fake_module("pomona.compression.recover", recover=recover)
    put_model("small")
    put_model("big")
    return found


def test_by_default_the_adapter_goes_into_the_base(
    pomona: Command, recoveries: Recoveries, cli_models: Path
) -> None:
    outcome = pomona("recover", "small", "--teacher", "big")
    assert outcome.code == 0, outcome.err
    assert recoveries.calls == [
        {
            "base": cli_models / "small",
            "teacher": cli_models / "big",
            "work": cli_models.parent / "recovery",
            "target": None,
            "text": TextOptions(),
            "train": TrainOptions(),
            "resume": False,
            "restart": False,
            "overwrite": False,
            "threads": None,
        }
    ]
    for words in ("0.2000 nats per token, before 0.5000", "60.0%", "409,600 tokens in 15.0 minutes (done)"):
        assert words in outcome.out
    assert outcome.out.endswith("Try: pomona run small\n")
    assert (
        "step 4, held-out KL 0.3100, training KL 0.4000, same top token 72.0%, 410 tokens/s, 5 minutes left\n"
        in outcome.err
    )
    assert "WARNING" not in outcome.err


def test_every_option_reaches_the_trainer(pomona: Command, recoveries: Recoveries, tmp_path: Path) -> None:
    line = (
        "--rank 8 --text a.txt --text b.jsonl --tokens 5000 --passes 4 --minutes 2.5 --lr 0.002 --window 256 "
        f"--batch 8 --seed 3 --start zero --work {tmp_path} --resume --threads 2 --overwrite"
    )
    assert pomona("recover", "small", "--teacher", "big", *line.split()).code == 0
    (call,) = recoveries.calls
    assert call["text"] == TextOptions(5000, 256, (Path("a.txt"), Path("b.jsonl")))
    assert call["train"] == TrainOptions(
        rank=8, passes=4, minutes=2.5, lr=0.002, batch=8, seed=3, start="zero"
    )
    assert (call["work"], call["threads"]) == (tmp_path, 2)
    assert (call["resume"], call["restart"], call["overwrite"]) == (True, False, True)


@pytest.mark.parametrize(
    ("options", "name"), [((), "small-recovered"), (("--name", "mine"), "mine"), (("--out", "x"), None)]
)
def test_trained_tables_are_a_model_of_their_own(
    pomona: Command, recoveries: Recoveries, cli_models: Path, options: tuple[str, ...], name: str | None
) -> None:
    outcome = pomona("recover", "small", "--teacher", "big", "--tables", *options)
    assert outcome.code == 0, outcome.err
    (call,) = recoveries.calls
    assert call["train"].tables
    assert call["target"] == (cli_models / name if name else Path("x"))
    assert outcome.out.endswith(f"Try: pomona run {name or 'x'}\n")


def test_json_is_the_report_alone(pomona: Command, recoveries: Recoveries) -> None:
    found = pomona("recover", "small", "--teacher", "big", "--json").json
    assert found == {**recoveries.report.to_json(), "directory": "adapter"}


def test_a_run_that_gained_nothing_is_said_loudly(pomona: Command, recoveries: Recoveries) -> None:
    recoveries.report = replace(recoveries.report, directory=None, kl=0.5, last_kl=0.7)
    outcome = pomona("recover", "small", "--teacher", "big")
    assert outcome.code == 0
    assert "WARNING: the held-out KL did not fall below its start, 0.5000: nothing was written" in outcome.err
    assert "Try:" not in outcome.out


def test_a_run_that_ended_worse_than_it_began_is_said_loudly(pomona: Command, recoveries: Recoveries) -> None:
    recoveries.report = replace(recoveries.report, last_kl=0.7)
    outcome = pomona("recover", "small", "--teacher", "big")
    assert "WARNING: the run ended worse than it started (0.7000 after 0.5000)" in outcome.err
    assert "Try:" in outcome.out


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--resume", "--restart"), "--resume and --restart"),
        (("--out", "x"), "are for --tables"),
        (("--name", "x"), "are for --tables"),
        (("--tables", "--out", "x", "--name", "y"), "both say where"),
        (("--tables", "--name", "../y"), "not a plain name"),
        (("--rank", "12"), "--rank"),
        (("--start", "svd"), "--start"),
        (("--lr", "0"), "lr = 0.0"),
        (("--window", "8"), "--window"),
        (("--tokens", "0"), "no text at all"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(
    pomona: Command, recoveries: Recoveries, options: tuple[str, ...], complaint: str
) -> None:
    outcome = pomona("recover", "small", "--teacher", "big", *options)
    assert outcome.code == 2
    assert complaint in outcome.err
    assert recoveries.calls == []


def test_the_teacher_must_be_named(pomona: Command, recoveries: Recoveries) -> None:
    outcome = pomona("recover", "small")
    assert outcome.code == 2 and "--teacher" in outcome.err
