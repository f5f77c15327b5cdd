"""`pomona compress`: palettise a model to 4 bits per weight or fewer.

    pomona compress smollm2-135m

Calibration, table fitting and the format itself are in pomona.compression.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from pomona.cli.common import (
    JsonOption,
    OverwriteOption,
    ProgressReporter,
    ThreadsOption,
    examples,
    format_bytes,
    new_app,
    parse_bytes,
    print_json,
    print_pairs,
)
from pomona.errors import PomonaError

if TYPE_CHECKING:
    from pomona.compression.options import Allocation
    from pomona.compression.palettize import Method

app = new_app()


@app.command(
    epilog=examples(
        "pomona compress smollm2-135m",
        "pomona compress smollm2-135m --bits 3.5",
        "pomona compress smollm2-135m --size 70MB --name smol-70mb",
        "pomona compress smollm2-135m --bits 3.5 --embedding-bits 4",
        "pomona compress smollm2-135m --max-kl 0.1 --constraints pins.json",
        "pomona compress ./my-model --out ./my-model-4bit --calibration notes.txt",
    )
)
def compress(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="A model in the cache, or a directory.", show_default=False),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write the result to this directory.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", help="Name of the result in the cache.", show_default="SOURCE-4bit, as the budget says"
        ),
    ] = None,
    bits: Annotated[
        float | None,
        typer.Option(
            "--bits",
            help="4, 3 or 2 for all projections; a fraction, such as 3.5, is met by a mix, tables and scales "
            "counted.",
            show_default="4",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="BYTES", help="Budget of the whole file instead, such as 70MB."),
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option(
            "--max-kl",
            help="Budget of loss instead: predicted nats per token, such as 0.1; as small as that allows.",
        ),
    ] = None,
    embedding_bits: Annotated[
        int | None,
        typer.Option(
            "--embedding-bits",
            metavar="8|4|3",
            help="Of the embedding, which is the head too in most models.",
            show_default="8; part of the choice with --size and --max-kl",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            metavar="compensated|weighted|kmeans",
            help="How tables and indices are found: with errors made good by later columns, weighted by "
            "the inputs, or neither.",
            show_default="compensated",
        ),
    ] = None,
    allocation: Annotated[
        str | None,
        typer.Option(
            "--allocation",
            metavar="kl|error",
            help="What a mix is judged by: the change of the answers, measured layer by layer (minutes), "
            "or the error of each matrix (no time).",
            show_default="kl",
        ),
    ] = None,
    constraints: Annotated[
        Path | None,
        typer.Option(
            "--constraints",
            metavar="FILE",
            help="JSON or YAML file that pins the bits of modules (docs/compress.md).",
        ),
    ] = None,
    table_columns: Annotated[
        int | None,
        typer.Option(
            "--table-columns",
            min=64,
            help="Input columns that share one table; a multiple of 64. Fewer: finer and a little larger.",
            show_default="64; 256 from a billion parameters on",
        ),
    ] = None,
    calibration: Annotated[
        str,
        typer.Option(
            "--calibration",
            metavar="self|none|FILE",
            help="Text that says which inputs matter: `self` for the model's own answers, or a UTF-8 file. "
            "`none`: all inputs alike.",
        ),
    ] = "self",
    work: Annotated[
        Path | None,
        typer.Option(
            "--work",
            metavar="DIR",
            help="Folder of finished steps; an interrupted run goes on from it.",
            show_default="NAME.work",
        ),
    ] = None,
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Palettise a model: projections, and its embedding as int8 or palettes."""
    if out is not None and name is not None:
        raise PomonaError("--out and --name: both say where the result goes; give one of them")
    if name is not None and (Path(name).name != name or name.startswith(".")):
        raise PomonaError(
            f"--name {name}: is not a plain name; use letters, digits, '.', '_', '-', or --out DIR"
        )
    if table_columns is not None and table_columns % 64:
        raise PomonaError(
            f"--table-columns {table_columns}: must be a multiple of 64, such as 64, 192 or 576"
        )
    if calibration not in ("self", "none") and not Path(calibration).is_file():
        raise PomonaError(
            f"{calibration}: no such calibration text; give a UTF-8 file, or leave the option out"
        )

    from pomona.compression.compress import compress as compress_model
    from pomona.models import store

    budget_bytes = None if size is None else parse_bytes("--size", size)
    directory = store.resolve(source)
    suffix = f"{bits or 4:g}bit" if size is None and max_kl is None else (size or f"kl{max_kl:g}")
    target = out or store.models_dir() / (name or f"{directory.resolve().name}-{suffix}")

    with ProgressReporter() as progress:
        report = compress_model(
            directory,
            target,
            bits=bits,
            size=budget_bytes,
            max_kl=max_kl,
            method=cast("Method | None", method),
            allocation=cast("Allocation | None", allocation),
            table_columns=table_columns,
            calibration=calibration,
            constraints=constraints,
            embedding_bits=embedding_bits,
            work=work,
            threads=threads,
            progress=progress.update,
            notice=lambda text: typer.echo(text, err=True),
            overwrite=overwrite,
        )
    if as_json:
        print_json({"name": target.name, "directory": target, **report.to_json()})
        return
    losses = []
    if report.predicted_kl is not None:
        measured = "" if report.measured_kl is None else f", measured {report.measured_kl:.4f}"
        losses = [("loss", f"KL {report.predicted_kl:.4f} nats per token predicted{measured}")]
    print_pairs(
        [
            ("model", str(target)),
            ("size", f"{format_bytes(report.file_bytes)}, before {format_bytes(report.source_bytes)}"),
            ("bits per weight", f"{report.projection_bits_per_weight:.2f} in the projections"),
            ("", f"{report.file_bits_per_weight:.2f} in the whole file"),
            *losses,
            ("time", f"{report.seconds:.1f} s"),
        ]
    )
    print(f"Try: pomona run {target.name if out is None else target}")
