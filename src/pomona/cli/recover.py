"""`pomona recover`: give a palettised model back what compression took, as an adapter.

    pomona recover smollm2-135m-3.5bit --teacher smollm2-135m

The work is done in pomona.compression.recover.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pomona.cli.common import (
    JsonOption,
    OverwriteOption,
    ProgressReporter,
    ThreadsOption,
    examples,
    new_app,
    note,
    print_json,
    print_pairs,
)
from pomona.compression.training.options import Start
from pomona.errors import PomonaError

if TYPE_CHECKING:
    from pomona.compression.training.options import Point

app = new_app()

Rank = Literal["8", "16", "32"]


@app.command(
    epilog=examples(
        "pomona recover smollm2-135m-3.5bit --teacher smollm2-135m",
        "pomona recover smollm2-135m-3.5bit --teacher smollm2-135m --tokens 100000 --text notes.txt",
        "pomona recover smollm2-135m-3.5bit --teacher smollm2-135m --rank 8 --minutes 30",
        "pomona recover smollm2-135m-3.5bit --teacher smollm2-135m --resume",
        "pomona recover smollm2-135m-3.5bit --teacher smollm2-135m --tables --name smollm2-135m-recovered",
    )
)
def recover(
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE", help="A compressed model in the cache, or a directory.", show_default=False
        ),
    ],
    teacher: Annotated[
        str,
        typer.Option(
            "--teacher", metavar="MODEL", help="The 16-bit model that BASE was made of.", show_default=False
        ),
    ],
    rank: Annotated[Rank, typer.Option("--rank", help="Of the adapter.")] = "16",
    tables: Annotated[
        bool,
        typer.Option(
            "--tables",
            help="Train the tables and row scales too. The result is a new model with the adapter in it.",
        ),
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="With --tables: directory of the new model.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="With --tables: its name in the cache.", show_default="BASE-recovered"),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="UTF-8 text, or .jsonl with `text` or `messages`, to train on too. May be given again.",
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", min=0, help="Tokens that the 16-bit model writes to train on.")
    ] = 400_000,
    passes: Annotated[int, typer.Option("--passes", min=1, help="Times that the text is read.")] = 3,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", min=0.01, help="Time for the training loop.", show_default="no limit"),
    ] = None,
    start: Annotated[
        Start,
        typer.Option(
            "--start",
            help="First values of the adapter: the best answer to what compression changed, those of the "
            "recovery adapter that is there, or none.",
        ),
    ] = "residual",
    lr: Annotated[float, typer.Option("--lr", help="Highest learning rate.")] = 1e-3,
    window: Annotated[int, typer.Option("--window", min=16, help="Tokens of one training text.")] = 512,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Windows in memory at a time.")] = 4,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the order and the first values.")] = 0,
    work: Annotated[
        Path | None,
        typer.Option(
            "--work",
            metavar="DIR",
            help="Where text, teacher's states and checkpoints are kept.",
            show_default="recovery in the cache",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Forget an interrupted run.")] = False,
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train the accuracy-recovery adapter of a compressed model; it runs by default from then on."""
    if resume and restart:
        raise PomonaError("--resume and --restart: one goes on with the run, the other forgets it; give one")
    if not tables and (out is not None or name is not None):
        raise PomonaError("--out and --name: are for --tables; without it the adapter goes into BASE")
    if out is not None and name is not None:
        raise PomonaError("--out and --name: both say where the new model goes; give one of them")
    if name is not None and (Path(name).name != name or name.startswith(".")):
        raise PomonaError(
            f"--name {name}: is not a plain name; use letters, digits, '.', '_', '-', or --out DIR"
        )

    from pomona.models import store

    directory, original = store.resolve(base), store.resolve(teacher)
    target = None
    if tables:
        target = out or store.models_dir() / (name or f"{directory.resolve().name}-recovered")

    from pomona.compression.recover import recover as recover_model
    from pomona.compression.recovery_text import TextOptions
    from pomona.compression.training.options import TrainOptions

    with ProgressReporter() as progress:
        report = recover_model(
            directory,
            original,
            work=work or store.cache_dir() / "recovery",
            target=target,
            text=TextOptions(tokens=tokens, window=window, files=tuple(text or ())),
            train=TrainOptions(
                rank=int(rank),
                tables=tables,
                start=start,
                passes=passes,
                minutes=minutes,
                lr=lr,
                batch=batch,
                seed=seed,
            ),
            resume=resume,
            restart=restart,
            overwrite=overwrite,
            threads=threads,
            progress=progress.update,
            on_point=lambda point, left: note(_line(point, left)),
        )
    if report.directory is None:
        _warn(
            f"the held-out KL did not fall below its start, {report.start_kl:.4f}: nothing was written. "
            "Lower --lr, or give text that resembles what the model reads"
        )
    elif report.last_kl > report.start_kl:
        _warn(
            f"the run ended worse than it started ({report.last_kl:.4f} after {report.start_kl:.4f}); "
            "its best moment was kept. Lower --lr"
        )
    if as_json:
        print_json(report.to_json())
        return
    print_pairs(
        [
            ("written", str(report.directory or "nothing")),
            ("KL to 16 bits", f"{report.kl:.4f} nats per token, before {report.start_kl:.4f}"),
            ("closed", f"{100 * report.closed:.1f}%"),
            ("same top token", f"{100 * report.same_top:.1f}%, before {100 * report.start_same_top:.1f}%"),
            (
                "trained on",
                f"{report.tokens:,} tokens in {report.seconds / 60:.1f} minutes ({report.stopped})",
            ),
        ]
    )
    if report.directory is not None:
        print(f"Try: pomona run {target.name if target is not None and out is None else target or base}")


def _line(point: Point, seconds_left: float | None) -> str:
    parts = [f"step {point.step}", f"held-out KL {point.held_out_kl:.4f}"]
    if point.kl is not None:
        parts.append(f"training KL {point.kl:.4f}")
    parts.append(f"same top token {100 * point.same_top:.1f}%")
    if point.tokens_per_second is not None:
        parts.append(f"{point.tokens_per_second:.0f} tokens/s")
    if seconds_left is not None:
        parts.append(f"{seconds_left / 60:.0f} minutes left")
    return ", ".join(parts)


def _warn(text: str) -> None:
    sys.stderr.write(f"\npomona: WARNING: {text}\n\n")
    sys.stderr.flush()
