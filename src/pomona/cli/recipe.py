"""`pomona recipe`: training rows of a task, as JSONL, reproducible by seed.

pomona recipe proofread --out proofread.jsonl --rows 5000
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
)
from pomona.errors import PomonaError

if TYPE_CHECKING:
    from pomona.adapters.recipes.writer import Writer

app = new_app()


@app.command(
    epilog=examples(
        "pomona recipe proofread --out proofread.jsonl --rows 5000",
        "pomona recipe tools --out tools.jsonl --data ~/data",
        "pomona recipe summarize --out s.jsonl --writer smollm2-135m",
        "pomona recipe summarize --out s.jsonl --writer big --endpoint http://127.0.0.1:8000/v1",
    )
)
def recipe(
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK",
            help="summarize, proofread, rewrite, key_points, reply, prioritize, extract or tools.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The JSONL file to write.", show_default=False)
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="FOLDER", help="Public data sets.", show_default="what POMONA_DATA names"
        ),
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="How many rows, at most.")] = 2000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same rows.")] = 0,
    writer: Annotated[
        str | None,
        typer.Option(
            "--writer",
            metavar="MODEL",
            help="A model that writes further answers: local, or its name at --endpoint.",
            show_default="none",
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            "--endpoint", metavar="URL", help="An OpenAI-compatible server for --writer.", show_default="none"
        ),
    ] = None,
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write training rows for TASK: messages with source and licence, one JSON object a line."""
    if endpoint is not None and writer is None:
        raise PomonaError("--endpoint: say by --writer which of the server's models writes")

    import os

    from pomona.adapters.recipes.rows import RecipeOptions, write_rows
    from pomona.data.public_sets import data_folder

    folder = data_folder(data) if data is not None or os.environ.get("POMONA_DATA") else None
    if folder is None:
        note("POMONA_DATA is not set and --data not given: only pomona's own invented texts are used")
    if writer is not None and (task != "summarize" or folder is None):
        raise PomonaError("--writer: answers are written for `summarize` alone, of mails in the data folder")
    pen = None if writer is None else _writer(writer, endpoint, threads, seed)
    with ProgressReporter() as progress:
        progress.update(f"recipe {task}", 0, 0)
        try:
            report = write_rows(
                task, out, RecipeOptions(rows=rows, seed=seed, data=folder, writer=pen), overwrite=overwrite
            )
        finally:
            if pen is not None:
                pen.model.close()
    if as_json:
        counts = {"sources": dict(report.sources), "licenses": dict(report.licenses)}
        plain = {"rows": report.rows, "repeated": report.repeated, "characters": report.characters}
        print_json({"task": task, "out": out, **plain, **counts})
        return
    print(f"{report.rows:,} rows in {out}")
    for source, count in report.sources.most_common():
        print(f"  {count:,} from {source}")
    print(f"licences: {', '.join(sorted(report.licenses))}")
    if report.rows < rows:
        note(f"the recipe has no more than {report.rows:,} different rows with these sources")


def _writer(name: str, endpoint: str | None, threads: int | None, seed: int) -> Writer:
    from pomona.adapters.recipes.writer import Writer

    if endpoint is not None:
        from pomona.runtime.remote import RemoteModel

        return Writer(RemoteModel(endpoint, name), name, seed=seed)
    from pomona.runtime.model import Model

    model = Model.load(name, threads=threads)
    return Writer(model, name, scorer=model, seed=seed)
