"""`pomona pull`: put a model into the cache, from a built-in name, a directory, a GGUF file or the hub.

    pomona pull smollm2-135m

Where models are kept and how a name is looked up is in pomona.models.store.
"""

from __future__ import annotations

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
)

app = new_app()


@app.command(
    epilog=examples(
        "pomona pull smollm2-135m",
        "pomona pull ./SmolLM2-135M-Instruct.Q4_1.gguf --name smol",
        "pomona pull ~/checkpoints/my-qwen3",
        "pomona pull Qwen/Qwen3-0.6B",
    )
)
def pull(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A built-in name, a Hugging Face directory, a .gguf file, or a hub id.",
            show_default=False,
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option("--name", help="What to call the model in the cache.", show_default="taken from SOURCE"),
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Put a model into the cache, ready for `pomona run` and `pomona compress`."""
    from pomona.models import store

    with ProgressReporter() as progress:
        directory = store.pull(source, name=name, progress=progress.update, overwrite=overwrite)
    size = directory_bytes(directory)
    if as_json:
        print_json({"name": directory.name, "directory": directory, "bytes": size})
        return
    print(f"{directory.name}: {format_bytes(size)} in {directory}")
    print(f"Try: pomona run {directory.name}")
