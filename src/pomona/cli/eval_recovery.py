"""`pomona eval recovery`: what compression costs and recovery gives back, in percent of the 16-bit model.

pomona eval recovery smollm2-135m-4bit smollm2-135m-3.5bit --limit ifeval=100 --out table.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pomona.cli.common import (
    JsonOption,
    ProgressReporter,
    ThreadsOption,
    examples,
    new_app,
    print_json,
    print_table,
)
from pomona.errors import PomonaError

app = new_app()


@app.command(
    "recovery",
    epilog=examples(
        "pomona eval recovery smollm2-135m-4bit",
        "pomona eval recovery smollm2-135m-4bit smollm2-135m-3.5bit --limit ifeval=100 --limit gsm8k_cot=200",
        "pomona eval recovery smollm2-135m-4bit --task qmsum --out table.json --json",
    ),
)
def recovery(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Compressed models; each alone, and with its adapter."),
    ],
    reference: Annotated[
        str, typer.Option("--reference", metavar="MODEL", help="The 16-bit model.")
    ] = "smollm2-135m",
    adapter: Annotated[
        str, typer.Option("--adapter", metavar="NAME", help="The adapter that recovers.")
    ] = "recovery",
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            metavar="NAME",
            help="ifeval, qmsum or gsm8k_cot; may be given several times.",
            show_default="all",
        ),
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            "--limit",
            metavar="TASK=ITEMS",
            help="The first items of a task; may be given several times.",
            show_default="all items",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option("--max-new-tokens", min=1, help="Of an answer.", show_default="the task's"),
    ] = None,
    template: Annotated[
        bool, typer.Option("--chat-template", help="GSM8K goes through the chat template as well.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Public data sets.", show_default="POMONA_DATA"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The table as JSON.", show_default=False),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what an earlier run has computed.")] = False,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """The report's Table 10 for these models: 16 bit, compressed, recovered, with intervals."""
    import json

    from pomona.cli.eval import check_file, work_folder
    from pomona.data.public_sets import data_folder
    from pomona.evaluation.recovery_table import COLUMNS, TableOptions, contenders, measure, shown
    from pomona.evaluation.results import write_text

    if out is not None:
        check_file("--out", out)
    options = TableOptions(tuple(task or COLUMNS), read_limits(limit or []), template, max_new_tokens)
    chosen = contenders(reference, models, adapter)
    with ProgressReporter() as progress:
        table = measure(
            chosen,
            data=data_folder(data),
            work=work_folder(fresh),
            options=options,
            threads=threads,
            progress=progress.update,
        )
    if out is not None:
        write_text(out, json.dumps(table.to_json(), indent=1) + "\n")
    if as_json:
        print_json(table.to_json())
        return
    print_table(*shown(table))
    items = ", ".join(f"{count:,} of {name}" for name, count in table.limits.items())
    print(f"value = percent of 16 bit (95% interval); items: {items}")


def read_limits(given: list[str]) -> dict[str, int]:
    """["ifeval=100"] -> {"ifeval": 100}. PomonaError for anything else."""
    found = {}
    for text in given:
        name, _, number = text.partition("=")
        if not number.isdecimal() or int(number) < 1:
            raise PomonaError(f"--limit {text}: write it as TASK=ITEMS, such as ifeval=100")
        found[name] = int(number)
    return found
