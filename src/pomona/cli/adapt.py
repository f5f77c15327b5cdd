"""`pomona adapt`: teach a model a task by examples, as an adapter.

    pomona adapt smollm2-135m-4bit notes.jsonl --name notes

The work is done in pomona.adapters.adapt.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pomona.adapters.options import AdaptOptions, Schedule
from pomona.cli.common import (
    JsonOption,
    OverwriteOption,
    ProgressReporter,
    ThreadsOption,
    examples,
    format_bytes,
    new_app,
    note,
    print_json,
    print_pairs,
    print_table,
)
from pomona.errors import PomonaError

if TYPE_CHECKING:
    from pomona.adapters.data import DataReport
    from pomona.adapters.options import AdaptPoint
    from pomona.adapters.plan import Plan
    from pomona.compression.training.loop import Step

app = new_app()

_QUIET_SECONDS = 30.0  # between two loss lines where there is no terminal


@app.command(
    epilog=examples(
        "pomona adapt smollm2-135m-4bit notes.jsonl --name notes",
        "pomona adapt smollm2-135m-4bit notes.jsonl --dry-run",
        "pomona adapt smollm2-135m-4bit notes.jsonl --minutes 30 --skip-bad",
        "pomona adapt smollm2-135m notes.parquet --rank 8 --epochs 2 --lr 0.0002 --out adapters/notes",
        "pomona adapt smollm2-135m-4bit more.jsonl --name notes --start notes --overwrite",
        "pomona adapt smollm2-135m-4bit notes.jsonl --name notes --resume",
    )
)
def adapt(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="A model in the cache, or a directory.", show_default=False)
    ],
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Rows with `messages`, or `prompt` and `completion`: .jsonl or .parquet.",
            show_default=False,
        ),
    ],
    name: Annotated[str | None, typer.Option("--name", help="Of the adapter.", show_default="DATA's")] = None,
    task: Annotated[
        str | None, typer.Option("--task", help="What it is for; noted in it.", show_default="its name")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where it goes.", show_default="BASE/adapters/NAME"),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--start",
            metavar="ADAPTER",
            help="Whose values are the first: one of BASE's adapters, or a directory.",
            show_default="the recovery adapter",
        ),
    ] = None,
    rank: Annotated[int, typer.Option("--rank", min=1, help="Of the adapter.")] = 16,
    lr: Annotated[
        float | None, typer.Option("--lr", help="Highest learning rate.", show_default="by rows")
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", min=1, help="Times that the rows are read.", show_default="by rows"),
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Rows of one step.", show_default="by rows")
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            "--window",
            min=16,
            help="Tokens of the longest row that is taken.",
            show_default="1024, or the context",
        ),
    ] = None,
    schedule: Annotated[
        Schedule, typer.Option("--schedule", help="Of the learning rate, after its warm-up.")
    ] = "cosine",
    warm_up: Annotated[
        float, typer.Option("--warm-up", help="Share of the run in which the rate rises.")
    ] = 0.05,
    validation: Annotated[
        float, typer.Option("--validation", help="Share of the rows that is held out.")
    ] = 0.1,
    patience: Annotated[
        int, typer.Option("--patience", min=1, help="Evaluations without a better one, then it stops.")
    ] = 4,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", min=0.01, help="Time for the training loop.", show_default="no limit"),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Of what is held out, the order and the first values.")
    ] = 0,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out rows that cannot be trained on.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the rows, tell memory and time, train nothing.")
    ] = False,
    work: Annotated[
        Path | None,
        typer.Option(
            "--work",
            metavar="DIR",
            help="Where checkpoints and event files are kept.",
            show_default="adapt in the cache",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Forget an interrupted run.")] = False,
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a task adapter on a model, palettised or not; its base stays as it is."""
    if resume and restart:
        raise PomonaError("--resume and --restart: one goes on with the run, the other forgets it; give one")
    options = AdaptOptions(
        rank=rank,
        lr=lr,
        epochs=epochs,
        batch=batch,
        window=window,
        schedule=schedule,
        warm_up=warm_up,
        validation=validation,
        minutes=minutes,
        patience=patience,
        seed=seed,
    )

    from pomona.adapters.adapt import adapt as adapt_model
    from pomona.models import store

    directory = store.resolve(base)
    line = LossLine()
    with ProgressReporter() as progress:

        def prepared(label: str, done: int, total: int) -> None:
            if label != "train":  # of which the loss line tells
                progress.update(label, done, total)

        report = adapt_model(
            directory,
            data,
            work=work or store.cache_dir() / "adapt",
            name=name,
            task=task,
            options=options,
            target=out,
            start_from=None if start is None else _adapter(directory, start),
            skip_bad=skip_bad,
            dry_run=dry_run,
            resume=resume,
            restart=restart,
            overwrite=overwrite,
            threads=threads,
            progress=prepared,
            on_data=_show_data,
            on_plan=_show_plan,
            on_point=lambda point, left: line.end(_line(point, left)),
            on_step=line.show,
        )
    if not dry_run and report.directory is None:
        _warn(
            f"the validation loss did not fall below its start, {report.start_loss:.4f}: nothing was "
            "written. Lower --lr, or look at the rows"
        )
    elif (report.last_loss or 0) > (report.start_loss or 0):
        _warn(
            f"the run ended worse than it started ({report.last_loss:.4f} after "
            f"{report.start_loss:.4f}); its best moment was kept. Lower --lr, or give more rows"
        )
    if as_json:
        print_json(report.to_json())
        return
    if dry_run:
        print("nothing was trained")
        return
    print_pairs(
        [
            ("written", str(report.directory or "nothing")),
            ("validation loss", f"{report.loss:.4f} nats per token, before {report.start_loss:.4f}"),
            (
                "right tokens",
                f"{100 * (report.accuracy or 0):.1f}%, before {100 * (report.start_accuracy or 0):.1f}%",
            ),
            (
                "trained on",
                f"{report.tokens:,} tokens in {report.seconds / 60:.1f} minutes ({report.stopped})",
            ),
        ]
    )
    if report.directory is not None and out is None:
        print(f"Try: pomona.load({base!r}).session(adapter={report.name!r})")


class LossLine:
    """The loss as it falls: one line that is written over on a terminal, else one now and then."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._shown = time.monotonic()

    def show(self, step: Step) -> None:
        if not self._live and time.monotonic() - self._shown < _QUIET_SECONDS:
            return
        self._shown = time.monotonic()
        parts = [f"step {step.step}/{step.total}", f"loss {step.loss:.4f}"]
        if step.seconds > 0:
            parts.append(f"{step.tokens / step.seconds:.0f} tokens/s")
        if step.seconds_left is not None:
            parts.append(_left(step.seconds_left))
        sys.stderr.write(f"\r\x1b[K{', '.join(parts)}" if self._live else f"{', '.join(parts)}\n")
        sys.stderr.flush()

    def end(self, text: str) -> None:
        """A line that stays."""
        if self._live:
            sys.stderr.write("\r\x1b[K")
        note(text)


def _show_data(report: DataReport) -> None:
    print_table((report.file, "rows", "where"), report.table(), stream=sys.stderr)


def _show_plan(plan: Plan) -> None:
    from pomona.adapters.plan import free_memory_bytes

    loop = plan.loop
    free = free_memory_bytes()
    there = "" if free is None else f", {format_bytes(free)} are free"
    time_needed = "not measured without torch"
    if plan.seconds is not None:
        time_needed = f"about {plan.seconds / 60:.1f} minutes, {plan.evaluations} evaluations included"
    print_pairs(
        [
            ("rows", f"{plan.rows:,} to learn, {plan.held_out_rows:,} held out"),
            ("tokens of an epoch", f"{plan.tokens:,}, of which {plan.answer_tokens:,} are learnt"),
            ("start", f"{plan.start}: {plan.start_note}"),
            (
                "recipe",
                f"rank {loop.rank}, {loop.passes} epochs, {loop.batch} rows a step, {plan.steps:,} steps, "
                f"learning rate {loop.lr:g}",
            ),
            ("memory", f"about {format_bytes(plan.memory_bytes)}{there}"),
            ("time", time_needed),
        ],
        stream=sys.stderr,
    )
    if free is not None and plan.memory_bytes > free:
        _warn("this may need more memory than is free; a smaller --window needs less")
    if plan.endless_rows:
        _warn("the chat template ends answers with no end token: where to stop is not learnt")


def _line(point: AdaptPoint, seconds_left: float | None) -> str:
    parts = [f"step {point.step}", f"validation loss {point.validation_loss:.4f}"]
    if point.loss is not None:
        parts.append(f"training loss {point.loss:.4f}")
    parts.append(f"right tokens {100 * point.accuracy:.1f}%")
    if point.tokens_per_second is not None:
        parts.append(f"{point.tokens_per_second:.0f} tokens/s")
    if seconds_left is not None:
        parts.append(_left(seconds_left))
    return ", ".join(parts)


def _adapter(base: Path, start: str) -> Path:
    """One of the base's adapters by name, or a directory."""
    from pomona.runtime.model import ADAPTERS_FOLDER

    named = base / ADAPTERS_FOLDER / start
    return named if "/" not in start and named.is_dir() else Path(start)


def _left(seconds: float) -> str:
    return f"{max(seconds, 0) / 60:.0f} minutes left" if seconds >= 90 else f"{max(seconds, 0):.0f} s left"


def _warn(text: str) -> None:
    sys.stderr.write(f"\npomona: WARNING: {text}\n\n")
    sys.stderr.flush()
