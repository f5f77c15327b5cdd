"""What the commands of `pomona align` share: option types, and the line that tells of steps."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pomona.cli.common import note, print_table
from pomona.errors import PomonaError

if TYPE_CHECKING:
    from pomona.adapters.data import DataReport
    from pomona.posttraining.training.trainer import StepReport

_QUIET_SECONDS = 30.0  # between two lines where there is no terminal

BaseArgument = Annotated[
    str, typer.Argument(metavar="BASE", help="A model in the cache, or a directory.", show_default=False)
]
PreferencesArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="Preferences as .jsonl, or hh_rlhf or dpo_pairs of the public data sets.",
        show_default=False,
    ),
]
RecipeOption = Annotated[
    Path | None,
    typer.Option(
        "--recipe", metavar="FILE", help="A YAML recipe; options given here win.", show_default="none"
    ),
]
StartOption = Annotated[
    Path | None,
    typer.Option(
        "--start",
        metavar="ADAPTER",
        help="A PEFT directory that the adapter begins as.",
        show_default="BASE's recovery adapter",
    ),
]
RankOption = Annotated[
    int | None, typer.Option("--rank", min=1, help="Of the adapter.", show_default="recipe's, 16")
]
LrOption = Annotated[
    float | None, typer.Option("--lr", help="Highest learning rate.", show_default="recipe's")
]
EpochsOption = Annotated[
    int | None,
    typer.Option("--epochs", min=1, help="Times that the rows are read.", show_default="recipe's"),
]
StepsOption = Annotated[
    int | None, typer.Option("--steps", min=1, help="Optimizer steps at most.", show_default="no limit")
]
MinutesOption = Annotated[
    float | None, typer.Option("--minutes", min=0.01, help="Time at most.", show_default="no limit")
]
BatchOption = Annotated[
    int | None, typer.Option("--batch", min=1, help="Rows of one step.", show_default="recipe's, 16")
]
WindowOption = Annotated[
    int | None,
    typer.Option("--window", min=16, help="Tokens of the longest row.", show_default="recipe's, 1024"),
]
ValidationOption = Annotated[
    float | None,
    typer.Option("--validation", help="Share of the rows that is held out.", show_default="recipe's"),
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", min=0, help="Of order, split and first values.", show_default="0")
]
FullOption = Annotated[bool, typer.Option("--full", help="Train all weights instead of an adapter.")]
SkipBadOption = Annotated[bool, typer.Option("--skip-bad", help="Leave out rows that cannot be used.")]
WorkOption = Annotated[
    Path | None,
    typer.Option("--work", metavar="DIR", help="For checkpoints.", show_default="align in the cache"),
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")]
RestartOption = Annotated[bool, typer.Option("--restart", help="Forget an interrupted run.")]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", metavar="FOLDER", help="Public data sets.", show_default="what POMONA_DATA names"),
]


def work_folder(work: Path | None, resume: bool, restart: bool) -> Path:
    """Where checkpoints go. PomonaError if both of the flags are given."""
    if resume and restart:
        raise PomonaError("--resume and --restart: one goes on with the run, the other forgets it; give one")
    from pomona.models import store

    return work or store.cache_dir() / "align"


def read_preference_data(data: str, folder: Path | None, skip_bad: bool) -> tuple[Any, Any]:
    """(rows, report) of a file or of a public set. PomonaError: bad rows, unless they are left out."""
    from pomona.posttraining.preference_sets import LICENSES, public_preferences
    from pomona.posttraining.preferences import read_preferences

    if data in LICENSES:
        return public_preferences(data, folder)
    rows, report = read_preferences(Path(data))
    if report.bad and not skip_bad:
        show_data(report)
        raise PomonaError(
            f"{data}: {len(report.bad):,} of {report.read:,} rows cannot be used ({report.first_bad()}); "
            "mend them, or give --skip-bad to leave them out"
        )
    return rows, report


def show_data(report: DataReport) -> None:
    print_table((report.file, "rows", "where"), report.table(), stream=sys.stderr)


class StepLine:
    """The loss as it falls: one line that is written over on a terminal, else one now and then."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._shown = time.monotonic()

    def show(self, step: StepReport) -> None:
        last = step.step == step.total
        if not self._live and not last and time.monotonic() - self._shown < _QUIET_SECONDS:
            return
        self._shown = time.monotonic()
        text = f"step {step.step}/{step.total}, loss {step.loss:.4f}, {step.seconds:.0f} s"
        if self._live and not last:
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()
        else:
            if self._live:
                sys.stderr.write("\r\x1b[K")
            note(text)


def run_lines(run: Any) -> list[tuple[str, str]]:
    """What the run did, for print_pairs."""
    lines = [("steps", f"{run.steps:,} in {run.seconds / 60:.1f} minutes ({run.stopped})")]
    if run.broken_steps:
        lines.append(("left out", f"{run.broken_steps:,} steps whose loss was no number"))
    return lines
