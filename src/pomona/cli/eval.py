"""`pomona eval`: suites of tasks on one model, and two results held against each other.

pomona eval smollm2-135m-4bit --suite core --out after.json
pomona eval --compare after.json before.json --page report.html
pomona eval recovery smollm2-135m-4bit

A word of SUBCOMMANDS in the place of MODEL is a command of its own, in a file of its own (cli/main.py looks
there first).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pomona.cli.common import (
    IsaOption,
    JsonOption,
    ProgressReporter,
    ThreadsOption,
    examples,
    new_app,
    note,
    print_json,
)
from pomona.errors import PomonaError

if TYPE_CHECKING:
    from pomona.evaluation.suites import Suite

# First word -> module with a Typer app of one command. A model of such a name is given as ./recovery.
SUBCOMMANDS = {"recovery": "pomona.cli.eval_recovery"}

app = new_app()


@app.command(
    epilog=examples(
        "pomona eval smollm2-135m-4bit --suite quick --limit 50",
        "pomona eval smollm2-135m-4bit --suite core --out after.json",
        "pomona eval smollm2-135m-4bit --suite core --adapter base --out before.json",
        "pomona eval --compare after.json before.json --page report.html",
        "pomona eval smollm2-135m-4bit --suite tools --task bfcl_simple --json",
        "pomona eval recovery smollm2-135m-4bit",
        "pomona eval --list",
    ),
)
def eval(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A model in the cache, or a directory; `recovery` is a command of its own.",
            show_default=False,
        ),
    ] = None,
    suite: Annotated[str, typer.Option("--suite", help="Of tasks; --list names them.")] = "core",
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            metavar="NAME",
            help="Of the suite, those that begin like this; may be given several times.",
            show_default="all",
        ),
    ] = None,
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
    samples: Annotated[
        int, typer.Option("--samples", min=1, max=1000, help="Answers per item of HumanEval, for pass@k.")
    ] = 1,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, max=10.0, help="Of our own tasks; 0 is greedy.")
    ] = 0.0,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens", min=1, help="Of an answer, in our own tasks.", show_default="the task's"
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Public data sets.", show_default="POMONA_DATA"),
    ] = None,
    hub: Annotated[
        bool, typer.Option("--hub", help="Rows come from the hub, over the network, not from local files.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Every item's score, for --compare.", show_default=False),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option("--page", metavar="FILE", help="The result as one HTML file.", show_default=False),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what an earlier run has computed.")] = False,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--compare", metavar="A B", help="Two results: A minus B, on the same items."),
    ] = None,
    list_suites: Annotated[bool, typer.Option("--list", help="Name the suites and stop.")] = False,
    threads: ThreadsOption = None,
    isa: IsaOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Evaluate a model on a suite of tasks, or compare two results."""
    if list_suites:
        _list(as_json)
        return
    if compare is not None:
        _compare(*compare, page, as_json)
        return
    if model is None:
        raise PomonaError("which model? Name one (`pomona eval MODEL`), or two results with --compare")

    from pomona.data.public_sets import data_folder
    from pomona.evaluation.harness import RunOptions, run_suite
    from pomona.evaluation.results import shown, write_result
    from pomona.evaluation.suites import suite_of
    from pomona.runtime.model import Model

    for option, file in (("--out", out), ("--page", page)):
        if file is not None:
            check_file(option, file)
    options = RunOptions(adapter, template, limit, hub, samples, temperature, max_new_tokens)
    chosen = suite_of(suite).only(task) if task else suite_of(suite)
    _warn(chosen)
    folder = None if hub else data_folder(data)
    work = work_folder(fresh)
    if isa != "auto":  # one that rounds answers otherwise
        work /= isa
    with Model.load(model, threads=threads, isa=isa) as loaded, ProgressReporter() as progress:
        result = run_suite(loaded, chosen, data=folder, work=work, options=options, progress=progress.update)
    if out is not None:
        write_result(result, out)
    if page is not None:
        from pomona.evaluation.report_page import render
        from pomona.evaluation.results import write_text

        write_text(page, render(result))
    if as_json:
        print_json(result.to_json())
        return
    for line in shown(result.rows()):
        print(line)
    print(f"average {100 * result.average:.2f}%, {result.seconds:.0f} s; adapter: {result.adapter or 'none'}")
    if result.left_out:
        print(f"left out, for their data are not there: {', '.join(result.left_out)}")


def work_folder(fresh: bool) -> Path:
    """Where answers and likelihoods are kept; emptied first if asked to."""
    import shutil

    from pomona.models.store import cache_dir

    work = cache_dir() / "eval"
    if fresh:
        shutil.rmtree(work, ignore_errors=True)
    return work


def check_file(option: str, file: Path) -> None:
    """Refuses before the work what could not be written after it."""
    if file.is_dir():
        raise PomonaError(f"{option} {file}: is a directory; name a file")
    if not file.absolute().parent.is_dir():
        raise PomonaError(f"{option} {file}: the directory {file.parent} does not exist; create it first")


def _warn(suite: Suite) -> None:
    """Programs of a model run behind walls; where those do not stand, the user should know first."""
    if any(task.name == "humaneval" for task in suite.tasks):
        from pomona.posttraining.sandbox import walls

        kind, reason = walls()
        if kind != "namespaces":
            note(f"pomona: programs run with limits alone, without walls ({reason}); see docs/sandbox.md")


def _list(as_json: bool) -> None:
    from pomona.evaluation.suites import SUITES

    if as_json:
        print_json({suite.name: [task.name for task in suite.tasks] for suite in SUITES.values()})
        return
    for suite in SUITES.values():
        print(f"{suite.name:8} {len(suite.tasks):3} tasks  {suite.about}")


def _compare(a: Path, b: Path, page: Path | None, as_json: bool) -> None:
    from pomona.evaluation.results import EvalResult, compare, shown, write_text

    ours, theirs = EvalResult.read(a), EvalResult.read(b)
    found = compare(ours, theirs)
    if page is not None:
        from pomona.evaluation.report_page import render

        check_file("--page", page)
        write_text(page, render(ours, theirs))
    if as_json:
        print_json({name: vars(one) for name, one in found.items()})
        return
    print(f"{a.name} ({ours.model}) minus {b.name} ({theirs.model}), in points")
    for line in shown(list(found.items()), "+"):
        print(line)
