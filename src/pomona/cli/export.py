"""`pomona export`: a model and its adapters for other engines, vLLM above all.

    pomona export smollm2-135m-4bit --to hf --out server-model

The work is done in pomona.adapters.export_model, the cards' in pomona.evaluation.model_card; one adapter
alone leaves by `pomona adapters export`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pomona.cli.common import (
    JsonOption,
    OverwriteOption,
    ProgressReporter,
    directory_bytes,
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
        "pomona export smollm2-135m-4bit --to hf --out server-model",
        "pomona export smollm2-135m-4bit --to hf --out server-model --adapter summarize --adapter proofread",
        "pomona export smollm2-135m-4bit --out server-model --results instruct.json --json",
    )
)
def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model in the cache, or a directory.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Write to this directory.", show_default=False)
    ],
    to: Annotated[
        str, typer.Option("--to", metavar="hf", help="The form: a Hugging Face directory in bf16.")
    ] = "hf",
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            metavar="NAME",
            help="Take this adapter; may be given several times. `recovery` always comes along.",
            show_default="all",
        ),
    ] = None,
    results: Annotated[
        list[Path] | None,
        typer.Option(
            "--results",
            metavar="FILE",
            help="A result of `pomona eval` for the model card; may be given several times.",
            show_default=False,
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a model in 16 bit with its adapters as PEFT directories, and say how vLLM serves them.

    README.md (a model card) and DATA.md (a data statement) come with it, out of the model's own records.
    """
    if to != "hf":
        raise PomonaError(f"--to {to}: is no form that there is; give --to hf")

    from pomona.adapters.export_model import export_model, vllm_command
    from pomona.evaluation.model_card import CARD, STATEMENT, Cards
    from pomona.models import store

    source = store.resolve(model)
    with ProgressReporter() as progress:
        exported = export_model(
            source,
            out,
            names=adapter,
            overwrite=overwrite,
            progress=progress.update,
            finish=lambda written: Cards.of(source, written, results or ()).write(written),
        )
    size, command = directory_bytes(exported.directory), vllm_command(exported)
    if as_json:
        print_json(
            {
                "written": exported.directory,
                "bytes": size,
                "adapters": exported.adapters,
                "cards": [CARD, STATEMENT],
                "vllm": command,
            }
        )
        return
    adapters = ", ".join(f"{name} (rank {rank})" for name, rank in exported.adapters.items())
    print_pairs(
        [
            ("model", str(exported.directory)),
            ("size", format_bytes(size)),
            ("adapters", adapters or "none"),
            ("cards", f"{CARD}, {STATEMENT}"),
        ]
    )
    print(f"Serve it with vLLM: {command}")
