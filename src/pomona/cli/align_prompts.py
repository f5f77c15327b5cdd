"""`pomona align prompts`: training prompts whose answers a program can verify.

    pomona align prompts prompts.jsonl --rows 500

The work is done in pomona.posttraining.instructions.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from pomona.cli.align_options import DataOption
from pomona.cli.common import JsonOption, OverwriteOption, examples, new_app, note, print_json, print_pairs
from pomona.errors import PomonaError

app = new_app()


@app.command(
    epilog=examples(
        "pomona align prompts prompts.jsonl --rows 500",
        "pomona align prompts prompts.jsonl --kind no_comma --kind lowercase --conditions 1",
    )
)
def prompts(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A .jsonl file to write.", show_default=False)],
    rows: Annotated[int, typer.Option("--rows", min=1, help="Different prompts.")] = 500,
    kind: Annotated[
        list[str] | None,
        typer.Option("--kind", help="Of condition; may be repeated.", show_default="all kinds"),
    ] = None,
    conditions: Annotated[int, typer.Option("--conditions", min=1, help="Of a prompt at the most.")] = 2,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Other seeds, other prompts.")] = 0,
    data_folder: DataOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write verifiable training prompts; none shares a run of words with IFEval's where those are given."""
    from pomona.data.public_sets import data_folder as folder_of
    from pomona.posttraining.instructions import InstructionOptions, evaluation_prompts, make_prompts
    from pomona.posttraining.prompts import write_prompts

    if out.exists() and not overwrite:
        raise PomonaError(f"{out}: is there already; give --overwrite, or choose another name")
    options = InstructionOptions(rows, tuple(kind or ()), conditions, seed)
    checked = data_folder is not None or bool(os.environ.get("POMONA_DATA"))
    if not checked:
        note("IFEval's prompts are not at hand (POMONA_DATA): the new ones were not compared with them")
    found = make_prompts(options, avoid=evaluation_prompts(folder_of(data_folder)) if checked else None)
    write_prompts(out, found)
    if as_json:
        print_json({"file": str(out), "rows": len(found), "compared_with_ifeval": checked})
        return
    print_pairs([("written", str(out)), ("prompts", f"{len(found):,}")])
