"""`pomona inspect`: what a model directory holds, read from its files without loading the model.

    pomona inspect smollm2-135m-4bit --tensors
    pomona inspect smollm2-135m-3.5bit --report --out report.html     # loads and measures: inspect_report.py

Bits per weight are told twice: for the projections alone, and for everything in the file.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pomona.cli.common import (
    JsonOption,
    examples,
    format_bytes,
    new_app,
    print_json,
    print_pairs,
    print_table,
)
from pomona.errors import PomonaError

if TYPE_CHECKING:
    from pomona.models.config import ModelConfig
    from pomona.models.palettized import ModelDescription

app = new_app()


@app.command(
    epilog=examples(
        "pomona inspect smollm2-135m",
        "pomona inspect ./my-model-4bit --tensors",
        "pomona inspect smollm2-135m-4bit --json | jq .projection_bits_per_weight",
        "pomona inspect smollm2-135m-3.5bit --report --out report.html",
    )
)
def inspect(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model in the cache, or a directory.", show_default=False)
    ],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    report: Annotated[
        bool,
        typer.Option(
            "--report",
            help="Load the model, measure its tokens, and show what every tensor costs in bytes and time and "
            "what its bits lose.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE.html", help="With --report: write it as a page for the browser, too."
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="With --report: CPU threads.", show_default="all cores"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show sizes, bits per weight, configuration and fingerprint of a model."""
    if report and tensors:
        raise PomonaError("--report lists the tensors already; leave --tensors out")
    if not report and (out is not None or threads is not None):
        raise PomonaError(f"{'--out' if out is not None else '--threads'} belongs to --report; give both")
    from pomona.models import store
    from pomona.models.config import ModelConfig
    from pomona.models.palettized import describe

    directory = store.resolve(model)
    if report:
        from pomona.cli.inspect_report import inspect_report

        inspect_report(directory, out=out, threads=threads, as_json=as_json)
        return
    config = ModelConfig.from_directory(directory)
    description = describe(directory)
    if as_json:
        print_json(_as_json(directory, config, description, tensors))
        return
    print_pairs(_summary(directory, config, description))
    print()
    rows = [
        (name, f"{count:,}", f"{weights:,}", f"{size:,}", f"{8 * size / max(weights, 1):.2f}")
        for name, (count, weights, size) in _by_format(description).items()
    ]
    print_table(("format", "tensors", "weights", "bytes", "bits each"), rows)
    if tensors:
        print()
        rows = [
            (
                tensor.name,
                "x".join(map(str, tensor.shape)),
                tensor.format,
                f"{tensor.bits:.2f}",
                f"{tensor.bytes:,}",
            )
            for tensor in description.tensors
        ]
        print_table(("tensor", "shape", "format", "bits", "bytes"), rows)


def _summary(directory: Path, config: ModelConfig, description: ModelDescription) -> list[tuple[str, str]]:
    head = "shared with the input" if config.tie_word_embeddings else "separate"
    parameters = config.non_embedding_parameters + config.embedding_parameters
    return [
        ("model", str(directory)),
        ("architecture", f"{config.architecture}, {config.num_hidden_layers} layers"),
        ("parameters", f"{parameters:,} ({config.embedding_parameters:,} in the embedding)"),
        ("width", f"{config.hidden_size}, feed-forward {config.intermediate_size}"),
        (
            "attention",
            f"{config.num_attention_heads} query and {config.num_key_value_heads} key/value heads "
            f"of {config.head_dim}",
        ),
        ("vocabulary", f"{config.vocab_size:,}, output matrix {head}"),
        ("context", f"{config.max_position_embeddings:,} tokens, RoPE base {config.rope_theta:,.0f}"),
        ("file", f"{format_bytes(description.file_bytes)} ({description.file_bytes:,} bytes)"),
        ("bits per weight", f"{description.projection_bits_per_weight:.3f} in the projections alone"),
        ("", f"{description.file_bits_per_weight:.3f} in the whole file"),
        ("fingerprint", description.fingerprint),
    ]


def _by_format(description: ModelDescription) -> dict[str, tuple[int, int, int]]:
    """Storage format -> number of tensors, weights and bytes; the largest format first."""
    totals: dict[str, tuple[int, int, int]] = {}
    for tensor in description.tensors:
        tensors, weights, size = totals.get(tensor.format, (0, 0, 0))
        totals[tensor.format] = (tensors + 1, weights + math.prod(tensor.shape), size + tensor.bytes)
    return dict(sorted(totals.items(), key=lambda item: -item[1][2]))


def _as_json(
    directory: Path, config: ModelConfig, description: ModelDescription, tensors: bool
) -> dict[str, Any]:
    result: dict[str, Any] = {
        "name": directory.name,
        "directory": directory,
        "fingerprint": description.fingerprint,
        "file_bytes": description.file_bytes,
        "projection_bits_per_weight": description.projection_bits_per_weight,
        "file_bits_per_weight": description.file_bits_per_weight,
        "parameters": config.non_embedding_parameters + config.embedding_parameters,
        "config": config.to_hf(),
        "formats": {
            name: {"tensors": count, "weights": weights, "bytes": size}
            for name, (count, weights, size) in _by_format(description).items()
        },
    }
    if tensors:
        result["tensors"] = [
            {
                "name": tensor.name,
                "shape": tensor.shape,
                "format": tensor.format,
                "bits": tensor.bits,
                "bytes": tensor.bytes,
            }
            for tensor in description.tensors
        ]
    return result
