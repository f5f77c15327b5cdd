"""`pomona align synth`: synthetic training rows that were checked (AFM report, section 4.2).

    pomona align synth math --out math.jsonl --writer big --endpoint http://127.0.0.1:8000/v1
    pomona align synth code --out code.jsonl --writer smollm2-135m --rows 100

The work is done in pomona.posttraining: synth.py, synth_math.py, synth_tools.py and synth_code.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pomona.cli.align_options import DataOption, RecipeOption
from pomona.cli.common import (
    JsonOption,
    OverwriteOption,
    ProgressReporter,
    ThreadsOption,
    examples,
    new_app,
    note,
    print_json,
    print_table,
)
from pomona.errors import PomonaError

if TYPE_CHECKING:
    from pomona.posttraining.synth import Author, SynthReport
    from pomona.runtime.backend import LanguageModel

app = new_app()

Kind = Literal["math", "tools", "code"]


@app.command(
    epilog=examples(
        "pomona align synth math --out math.jsonl --writer big --endpoint http://127.0.0.1:8000/v1",
        "pomona align synth tools --out tools.jsonl --writer smollm2-135m --rows 200",
        "pomona align synth code --out code.jsonl --writer big --endpoint http://127.0.0.1:8000/v1 --json",
    )
)
def synth(
    kind: Annotated[Kind, typer.Argument(help="What the rows are about.", show_default=False)],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The JSONL file to write.", show_default=False)
    ],
    writer: Annotated[
        str,
        typer.Option(
            "--writer",
            metavar="MODEL",
            help="The model that writes: local, or its name at --endpoint.",
            show_default=False,
        ),
    ],
    endpoint: Annotated[
        str | None,
        typer.Option("--endpoint", metavar="URL", help="An OpenAI-compatible server.", show_default="none"),
    ] = None,
    seeds: Annotated[
        Path | None,
        typer.Option(
            "--seeds",
            metavar="FILE",
            help="Problems, or tools, to start from (.jsonl).",
            show_default="GSM8K's training problems; our own tools",
        ),
    ] = None,
    recipe: RecipeOption = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="How many rows, at most.")] = 100,
    temperature: Annotated[float, typer.Option("--temperature", help="Of the writer.")] = 0.8,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same rows.")] = 0,
    data: DataOption = None,
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Let a model write training rows; rules, known answers and executed tests decide what is kept."""
    from pomona.posttraining.synth import Author, SynthReport, write_synth

    report = SynthReport(kind)
    model = _model(writer, endpoint, threads)
    author = Author(model, writer, report, temperature=temperature, seed=seed)
    with ProgressReporter() as progress:

        def counted() -> Iterator[tuple[str, dict[str, Any]]]:
            for number, row in enumerate(_rows(kind, author, seeds, recipe, data, seed)):
                progress.update(f"synth {kind}", number, rows)
                yield row

        try:
            progress.update(f"synth {kind}", 0, rows)
            count = write_synth(out, counted(), report, count=rows, overwrite=overwrite)
        finally:
            model.close()
    if as_json:
        print_json({**report.to_json(), "rows": count, "out": out})
        return
    _show(report, count, out)
    if count < rows:
        note(f"the writer gave no more than {count:,} rows")


def _model(writer: str, endpoint: str | None, threads: int | None) -> LanguageModel:
    if endpoint is not None:
        from pomona.runtime.remote import RemoteModel

        return RemoteModel(endpoint, writer)
    from pomona.runtime.model import Model

    return Model.load(writer, threads=threads)


def _rows(
    kind: Kind, author: Author, seeds: Path | None, recipe: Path | None, data: Path | None, seed: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    from pomona.posttraining import synth_code, synth_math, synth_tools
    from pomona.posttraining.options import read_recipe

    if kind == "math":
        if seeds is None:
            from pomona.data.public_sets import data_folder

            seeds = data_folder(data) / "gsm8k" / "train.jsonl"
        math_options = (
            synth_math.MathOptions()
            if recipe is None
            else read_recipe(recipe, "synth-math", synth_math.MathOptions)
        )
        return synth_math.problems(synth_math.read_seeds(seeds), author, math_options, seed=seed)
    if kind == "tools":
        tool_options = (
            synth_tools.ToolOptions()
            if recipe is None
            else read_recipe(recipe, "synth-tools", synth_tools.ToolOptions)
        )
        tools = synth_tools.read_tools(seeds or synth_tools.OWN_TOOLS)
        return synth_tools.cases(tools, author, tool_options, seed=seed)
    if seeds is not None:
        raise PomonaError("--seeds: code starts from its own topics; leave it out")
    from pomona.posttraining.sandbox import walls

    standing, reason = walls()
    if standing != "namespaces":
        note(f"the sandbox has limits alone here ({reason}); see docs/sandbox.md")
    code_options = (
        synth_code.CodeOptions()
        if recipe is None
        else read_recipe(recipe, "synth-code", synth_code.CodeOptions)
    )
    return synth_code.samples(synth_code.topics(), author, code_options, seed=seed)


def _show(report: SynthReport, count: int, out: Path) -> None:
    print(f"{count:,} rows in {out}")
    print(f"{report.asked:,} questions to the writer, {report.unanswered:,} without a usable answer")
    lines = [(f"kept: {kind}", f"{number:,}") for kind, number in report.kept.most_common()]
    lines += [
        (f"dropped: {kind}, {reason}", f"{number:,}")
        for (kind, reason), number in report.dropped.most_common()
    ]
    print_table(("what", "rows"), lines)
