"""`pomona eval`: lm-evaluation-harness on our runtime.

pomona eval smollm2-135m-4bit --suite core --out after.json
pomona eval --compare after.json before.json
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
)
from pomona.errors import PomonaError

app = new_app()


@app.command(
    epilog=examples(
        "pomona eval smollm2-135m-4bit --suite quick --limit 50",
        "pomona eval smollm2-135m-4bit --suite core --out after.json",
        "pomona eval smollm2-135m-4bit --suite core --adapter base --out before.json",
        "pomona eval --compare after.json before.json",
        "pomona eval --list",
    )
)
def eval(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A model in the cache, or a directory.", show_default=False),
    ] = None,
    suite: Annotated[str, typer.Option("--suite", help="Of tasks; --list names them.")] = "core",
    adapter: Annotated[
        str | None,
        typer.Option(
            "--adapter", metavar="NAME", help="`base` for none.", show_default="the recovery adapter"
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Items of each task.", show_default="all")
    ] = None,
    template: Annotated[
        bool, typer.Option("--chat-template", help="Prompts go through the model's chat template.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Public data sets.", show_default="POMONA_DATA"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Every item's score, for --compare.", show_default=False),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what an earlier run has computed.")] = False,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--compare", metavar="A B", help="Two results: A minus B, on the same items."),
    ] = None,
    list_suites: Annotated[bool, typer.Option("--list", help="Name the suites and stop.")] = False,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a model on tasks of lm-evaluation-harness, from local files."""
    if list_suites:
        _list(as_json)
        return
    if compare is not None:
        _compare(*compare, as_json)
        return
    if model is None:
        raise PomonaError("which model? Name one (`pomona eval MODEL`), or two results with --compare")

    import shutil

    from pomona.data.public_sets import data_folder
    from pomona.evaluation.harness import run_suite, shown, write_result
    from pomona.evaluation.suites import suite_of
    from pomona.models.store import cache_dir
    from pomona.runtime.model import Model

    chosen = suite_of(suite)
    work = cache_dir() / "eval"
    if fresh:
        shutil.rmtree(work, ignore_errors=True)
    with Model.load(model, threads=threads) as loaded, ProgressReporter() as progress:
        result = run_suite(
            loaded,
            chosen,
            data=data_folder(data),
            work=work,
            adapter=adapter,
            template=template,
            limit=limit,
            progress=progress.update,
        )
    if out is not None:
        write_result(result, out)
    if as_json:
        print_json(result.to_json())
        return
    for line in shown(result.rows()):
        print(line)
    print(f"average {100 * result.average:.2f}%, {result.seconds:.0f} s; adapter: {result.adapter or 'none'}")


def _list(as_json: bool) -> None:
    from pomona.evaluation.suites import SUITES

    if as_json:
        print_json({suite.name: [task.name for task in suite.tasks] for suite in SUITES.values()})
        return
    for suite in SUITES.values():
        print(f"{suite.name:8} {len(suite.tasks):3} tasks  {suite.about}")


def _compare(a: Path, b: Path, as_json: bool) -> None:
    from pomona.evaluation.harness import EvalResult, compare, shown

    ours, theirs = EvalResult.read(a), EvalResult.read(b)
    found = compare(ours, theirs)
    if as_json:
        print_json({name: vars(one) for name, one in found.items()})
        return
    print(f"{a.name} ({ours.model}) minus {b.name} ({theirs.model}), in points")
    for line in shown(list(found.items()), "+"):
        print(line)
