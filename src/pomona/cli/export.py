"""`pomona export`: a model and its adapters for other engines, vLLM above all.

    pomona export smollm2-135m-4bit --to hf --out server-model

The work is done in pomona.adapters.export_model; one adapter alone leaves by `pomona adapters export`.
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
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a model in 16 bit with its adapters as PEFT directories, and say how vLLM serves them."""
    if to != "hf":
        raise PomonaError(f"--to {to}: is no form that there is; give --to hf")

    from pomona.adapters.export_model import export_model, vllm_command
    from pomona.models import store

    with ProgressReporter() as progress:
        exported = export_model(
            store.resolve(model), out, names=adapter, overwrite=overwrite, progress=progress.update
        )
    size, command = directory_bytes(exported.directory), vllm_command(exported)
    if as_json:
        print_json(
            {"written": exported.directory, "bytes": size, "adapters": exported.adapters, "vllm": command}
        )
        return
    adapters = ", ".join(f"{name} (rank {rank})" for name, rank in exported.adapters.items())
    print_pairs(
        [
            ("model", str(exported.directory)),
            ("size", format_bytes(size)),
            ("adapters", adapters or "none"),
        ]
    )
    print(f"Serve it with vLLM: {command}")
