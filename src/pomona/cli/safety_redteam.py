"""`pomona safety redteam`: prompts in many dresses to a model, every reply judged by a stated rule.

    pomona safety redteam smollm2-135m-4bit --set advbench --set xstest --out compressed.json
    pomona safety redteam --compare compressed.json base.json

The work is done in pomona.safety: redteam.py, mutations.py, judge_rules.py, redteam_report.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pomona.cli.common import (
    JsonOption,
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
    from pomona.runtime.backend import LanguageModel
    from pomona.safety.rates import JudgeError
    from pomona.safety.redteam_report import RedTeamReport

app = new_app()


@app.command(
    epilog=examples(
        "pomona safety redteam smollm2-135m-4bit --out compressed.json",
        "pomona safety redteam smollm2-135m-4bit --set mine.jsonl --mutation encoding --json",
        "pomona safety redteam afm --endpoint http://127.0.0.1:8000/v1 --set xstest",
        "pomona safety redteam --replies compressed.json --guard mine.guard --out guarded.json",
        "pomona safety redteam --compare guarded.json compressed.json",
        "pomona safety redteam --list",
    )
)
def redteam(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A model in the cache, or a directory; with --endpoint its name there.",
            show_default=False,
        ),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Of prompts, or a .jsonl file; may be repeated.", show_default="all public sets"
        ),
    ] = None,
    mutation: Annotated[
        list[str] | None,
        typer.Option(
            "--mutation", help="Or a family; may be repeated; `plain` for none.", show_default="all"
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="Prompts of each set, evenly over it.", show_default="all"),
    ] = None,
    mutated: Annotated[
        int, typer.Option("--mutated", min=0, help="Harmful prompts that each mutation is tried on.")
    ] = 100,
    part: Annotated[
        str, typer.Option("--part", help="train, test or all: what did not teach a guardrail is `test`.")
    ] = "all",
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Of a reply.")] = 96,
    adapter: Annotated[
        str | None,
        typer.Option(
            "--adapter", metavar="NAME", help="`base` for none.", show_default="the recovery adapter"
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            "--endpoint",
            metavar="URL",
            help="An OpenAI-compatible server up to /v1, to which the prompts are sent.",
            show_default=False,
        ),
    ] = None,
    guard: Annotated[
        str | None,
        typer.Option(
            "--guard",
            metavar="DOTTED",
            help="package.module.function of (message, reply): True blocks.",
            show_default=False,
        ),
    ] = None,
    replies: Annotated[
        Path | None,
        typer.Option(
            "--replies",
            metavar="REPORT",
            help="For --guard: an earlier report's replies.",
            show_default=False,
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            metavar="FILE",
            help="Labelled replies for the judge's error.",
            show_default="XSTest's, where it is",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Public data sets.", show_default="POMONA_DATA"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The report with all texts.", show_default=False),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget the replies of earlier runs.")] = False,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--compare", metavar="A B", help="Two reports: A minus B, on the same prompts."),
    ] = None,
    list_sets: Annotated[bool, typer.Option("--list", help="Name sets and mutations, and stop.")] = False,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Violation rate by category and mutation, over-refusal on benign look-alikes."""
    if list_sets:
        _list(as_json)
        return
    if compare is not None:
        _compare(*compare, as_json)
        return
    if replies is not None:
        if guard is None:
            raise PomonaError("--replies: takes replies for a guard; give it with --guard")
        report = _guarded(replies, guard)
    else:
        if model is None:
            raise PomonaError(
                "which model? Name one (`pomona safety redteam MODEL`), or two reports by --compare"
            )
        report = _run(
            model,
            tuple(sets or ()),
            tuple(mutation or ("all",)),
            limit=limit,
            mutated=mutated,
            part=part,
            max_tokens=max_tokens,
            adapter=adapter,
            endpoint=endpoint,
            guard=guard,
            labels=labels,
            data=data,
            fresh=fresh,
            threads=threads,
        )
    if out is not None:
        report.write(out)
    _print(report, as_json)


def _run(
    name: str,
    sets: tuple[str, ...],
    dresses: tuple[str, ...],
    *,
    limit: int | None,
    mutated: int,
    part: Any,
    max_tokens: int,
    adapter: str | None,
    endpoint: str | None,
    guard: str | None,
    labels: Path | None,
    data: Path | None,
    fresh: bool,
    threads: int | None,
) -> RedTeamReport:
    from pomona.models.store import cache_dir
    from pomona.safety.prompt_sets import SETS, read_set, spread
    from pomona.safety.redteam import RedTeamOptions, kept_files, load_guard, red_team

    options = RedTeamOptions(dresses, mutated, max_tokens)
    folder = _folder(data, needed=not sets or any(one in SETS for one in sets))
    prompts = [prompt for one in sets or SETS for prompt in spread(read_set(one, folder, part), limit)]
    work = cache_dir() / "redteam"
    if fresh:
        for path in kept_files(work):
            path.unlink()
    with _model(name, endpoint, threads) as model, ProgressReporter() as progress:
        return red_team(
            model,
            prompts,
            options,
            work=work,
            adapter=adapter,
            guard=None if guard is None else load_guard(guard),
            guard_name=guard,
            judge_error=_judge_error(labels, folder),
            progress=progress.update,
        )


def _model(name: str, endpoint: str | None, threads: int | None) -> LanguageModel:
    if endpoint is None:
        from pomona.runtime.model import Model

        return Model.load(name, threads=threads)
    import os

    from pomona.runtime.remote import RemoteModel

    note(f"the prompts go to {endpoint}")
    return RemoteModel(endpoint, name, api_key=os.environ.get("POMONA_API_KEY"), timeout=600.0)


def _folder(data: Path | None, *, needed: bool) -> Path | None:
    """The folder of public data sets; None where none is named and none is needed."""
    from pomona.data.public_sets import data_folder

    try:
        return data_folder(data)
    except PomonaError:
        if needed or data is not None:
            raise
        return None


def _judge_error(labels: Path | None, folder: Path | None) -> JudgeError | None:
    from pomona.safety.judge_error import held_out, of_labelled, read_labels
    from pomona.safety.prompt_sets import xstest_replies

    if labels is not None:
        return of_labelled(read_labels(labels))
    if folder is not None and (folder / "xstest").is_dir():
        return of_labelled(held_out(xstest_replies(folder)))
    note("no labelled replies are at hand (--labels, or XSTest in POMONA_DATA): rates are not corrected")
    return None


def _guarded(replies: Path, guard: str) -> RedTeamReport:
    from pomona.safety.redteam import guarded, load_guard
    from pomona.safety.redteam_report import RedTeamReport

    with ProgressReporter() as progress:
        return guarded(RedTeamReport.read(replies), load_guard(guard), guard, progress.update)


def _print(report: RedTeamReport, as_json: bool) -> None:
    from pomona.safety.redteam_report import shown

    if as_json:
        print_json(report.summary())
        return
    print_table(("row", "prompts", "rate, 95%", "corrected, 95%"), shown(report))
    error = report.judge_error
    if error is not None:
        print(
            f"judge: sensitivity {100 * (error.sensitivity.value or 0):.1f}%, specificity "
            f"{100 * (error.specificity.value or 0):.1f}% on {error.positives + error.negatives} replies "
            f"that people labelled ({error.source})"
        )
    print(f"adapter: {report.adapter or 'none'}, guard: {report.guard or 'none'}, {report.seconds:.0f} s")


def _compare(a: Path, b: Path, as_json: bool) -> None:
    from pomona.safety.redteam_report import RedTeamReport, compare

    found = compare(RedTeamReport.read(a), RedTeamReport.read(b))
    if as_json:
        print_json(
            {"rows": [{"table": table, "name": name, **vars(one)} for (table, name), one in found.items()]}
        )
        return
    print(f"{a.name} minus {b.name}, in points")
    print_table(
        ("row", "prompts", "difference, 95%"),
        [
            (
                f"{table}: {name}",
                f"{one.rows:,}",
                f"{100 * one.value:+.1f} ({100 * one.low:+.1f} .. {100 * one.high:+.1f})",
            )
            for (table, name), one in found.items()
        ],
    )


def _list(as_json: bool) -> None:
    from pomona.safety.mutations import MUTATIONS
    from pomona.safety.prompt_sets import SETS

    if as_json:
        print_json({"sets": list(SETS), "mutations": {one.name: one.about for one in MUTATIONS.values()}})
        return
    print(f"sets: {', '.join(SETS)}, or a .jsonl file")
    for one in MUTATIONS.values():
        print(f"{one.name:10} {one.family:10} {one.about}")
