"""`pomona compress`: palettise a model to 4 bits per weight or fewer.

    pomona compress smollm2-135m

Calibration, table fitting and the format itself are in pomona.compression.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pomona.cli.common import (
    JsonOption,
    OverwriteOption,
    ProgressReporter,
    ThreadsOption,
    examples,
    format_bytes,
    new_app,
    print_json,
    print_pairs,
)
from pomona.errors import PomonaError

app = new_app()


@app.command(
    epilog=examples(
        "pomona compress smollm2-135m",
        "pomona compress smollm2-135m --bits 3.5",
        "pomona compress smollm2-135m --table-columns 192 --name smol-coarse",
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
            "--name", help="Name of the result in the cache.", show_default="SOURCE-4bit, as --bits says"
        ),
    ] = None,
    bits: Annotated[
        float,
        typer.Option(
            "--bits",
            help="4, 3 or 2 for all projections; a fraction, such as 3.5, is met by a mix of these, tables "
            "and scales counted.",
        ),
    ] = 4,
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
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Palettise the projections of a model and store its embedding as int8."""
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
    text: str | Path = calibration if calibration in ("self", "none") else Path(calibration)
    if isinstance(text, Path) and not text.is_file():
        raise PomonaError(
            f"{calibration}: no such calibration text; give a UTF-8 file, or leave the option out"
        )

    from pomona.models import store

    directory = store.resolve(source)
    target = out or store.models_dir() / (name or f"{directory.resolve().name}-{bits:g}bit")

    from pomona.compression.compress import compress as compress_model

    with ProgressReporter() as progress:
        report = compress_model(
            directory,
            target,
            bits=bits,
            table_columns=table_columns,
            calibration=text,
            threads=threads,
            progress=progress.update,
            overwrite=overwrite,
        )
    if as_json:
        print_json({"name": target.name, "directory": target, **report.to_json()})
        return
    print_pairs(
        [
            ("model", str(target)),
            ("size", f"{format_bytes(report.file_bytes)}, before {format_bytes(report.source_bytes)}"),
            ("bits per weight", f"{report.projection_bits_per_weight:.2f} in the projections"),
            ("", f"{report.file_bits_per_weight:.2f} in the whole file"),
            ("time", f"{report.seconds:.1f} s"),
        ]
    )
    print(f"Try: pomona run {target.name if out is None else target}")
