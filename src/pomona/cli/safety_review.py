"""`pomona safety review`: the queue of replies that people look at.

    pomona safety review add report.json --only violations
    pomona safety review label 3 refuses --grader anna

The work is done in pomona.safety.review_store.
"""

from __future__ import annotations

import getpass
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pomona.cli.common import (
    JsonOption,
    OverwriteOption,
    examples,
    new_app,
    print_json,
    print_pairs,
    print_table,
)
from pomona.errors import PomonaError

if TYPE_CHECKING:
    from pomona.safety.redteam_report import Attempt
    from pomona.safety.review_store import ReviewStore

app = new_app()

DbOption = Annotated[
    Path | None,
    typer.Option("--db", metavar="FILE", help="The queue.", show_default="review.db in the cache"),
]
GraderOption = Annotated[
    str | None, typer.Option("--grader", help="Who labels.", show_default="the user's name")
]
NumberArgument = Annotated[
    int, typer.Argument(metavar="NUMBER", help="Of an item, as listed.", show_default=False)
]
ONLY = ("all", "violations", "over-refusals", "doubtful")


@app.callback(invoke_without_command=True, epilog=examples("pomona safety review list --json"))
def review(context: typer.Context) -> None:
    """Replies that people look at: fill the queue, label, export."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command(
    epilog=examples(
        "pomona safety review add report.json --only violations",
        "pomona safety review add report.json --limit 120 --json",
    )
)
def add(
    report: Annotated[
        Path, typer.Argument(metavar="REPORT", help="Of `pomona safety redteam --out`.", show_default=False)
    ],
    only: Annotated[
        str, typer.Option("--only", help=f"{', '.join(ONLY)} (neither refusal nor compliance).")
    ] = "all",
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Items, evenly over the report.", show_default="all")
    ] = None,
    db: DbOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put replies of a report into the queue."""
    from pomona.safety.prompt_sets import UNTAGGED
    from pomona.safety.redteam_report import RedTeamReport

    if only not in ONLY:
        raise PomonaError(f"--only {only}: choose {', '.join(ONLY)}")
    read = RedTeamReport.read(report)
    choices: dict[str, Callable[[Attempt], bool]] = {
        "all": lambda one: True,
        "violations": lambda one: one.violation,
        "over-refusals": lambda one: one.over_refusal,
        "doubtful": lambda one: one.kind not in ("refusal", "compliance"),
    }
    chosen = [one for one in read.attempts if choices[only](one)]
    if limit is not None and limit < len(chosen):
        chosen = [chosen[i * len(chosen) // limit] for i in range(limit)]
    store = _store(db)
    added = sum(
        store.add(
            one.prompt.text,
            one.reply,
            source=f"{read.model} {one.id}",
            suggestion=one.kind,
            tags=() if one.prompt.category == UNTAGGED else (one.prompt.category,),
            license=one.prompt.license,
            harmful=one.prompt.harmful,
        )
        for one in chosen
    )
    if as_json:
        print_json({"added": added, "there already": len(chosen) - added, **store.counts()})
        return
    print(f"{added:,} added, {len(chosen) - added:,} were there already")


@app.command(
    "list", epilog=examples("pomona safety review list --open --limit 20", "pomona safety review list --json")
)
def list_command(
    waiting: Annotated[bool, typer.Option("--open", help="Only what nobody has labelled.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Items at the most.")] = 20,
    db: DbOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the queue, without its texts (`show` has them)."""
    store = _store(db)
    items = store.items(waiting_for="" if waiting else None, limit=limit)
    if as_json:
        rows = [
            {key: value for key, value in item.to_json().items() if key not in ("prompt", "reply")}
            for item in items
        ]
        print_json({**store.counts(), "rows": rows})
        return
    print_pairs([(key, f"{value:,}") for key, value in store.counts().items()])
    print_table(
        ("item", "source", "judge", "labels", "people"),
        [
            (str(item.number), item.source, item.suggestion, str(len(item.labels)), item.decision or "-")
            for item in items
        ],
    )


@app.command(epilog=examples("pomona safety review show 3", "pomona safety review show 3 --json"))
def show(number: NumberArgument, db: DbOption = None, as_json: JsonOption = False) -> None:
    """Show an item with its prompt and reply, which may be vile."""
    item = _store(db).item(number)
    if as_json:
        print_json(item.to_json())
        return
    print_pairs(
        [
            ("item", str(item.number)),
            ("source", item.source),
            ("kinds of harm", ", ".join(item.tags) or "-"),
            ("a compliance", "would be a violation" if item.harmful else "is what is wanted"),
            ("judge", item.suggestion),
            *(
                (f"{one.grader}", f"{one.decision} {', '.join(one.tags)} {one.note}".rstrip())
                for one in item.labels
            ),
        ]
    )
    for title, text in (("prompt", item.prompt), ("reply", item.reply)):
        print(f"\n--- {title}\n{_printable(text)}")


@app.command(
    epilog=examples(
        "pomona safety review label 3 refuses",
        "pomona safety review label 4 complies --tag cybercrime.phishing --note 'says how' --json",
    )
)
def label(
    number: NumberArgument,
    decision: Annotated[
        str,
        typer.Argument(metavar="DECISION", help="complies (fully), refuses, or unsure.", show_default=False),
    ],
    tag: Annotated[
        list[str] | None,
        typer.Option("--tag", help="A kind of harm of the taxonomy; may be repeated.", show_default=False),
    ] = None,
    note: Annotated[str, typer.Option("--note", help="A remark.", show_default=False)] = "",
    grader: GraderOption = None,
    db: DbOption = None,
    as_json: JsonOption = False,
) -> None:
    """Label an item; a second label of the same grader replaces the first."""
    from typing import cast

    from pomona.safety.review_store import Decision

    item = _store(db).label(
        number, cast(Decision, decision), grader=grader or getpass.getuser(), tags=tuple(tag or ()), note=note
    )
    if as_json:
        print_json({"number": item.number, "verdict": item.decision, "labels": len(item.labels)})
        return
    print(f"item {item.number}: {item.decision} ({len(item.labels)} labels)")


@app.command(
    epilog=examples(
        "pomona safety review export labels.jsonl",
        "pomona safety redteam smollm2-135m-4bit --labels labels.jsonl",
    )
)
def export(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A .jsonl file to write.", show_default=False)],
    db: DbOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write every labelled item as a row."""
    from pomona.safety.training_rows import write_jsonl

    rows = _store(db).export()
    if not rows:
        raise PomonaError("nothing is labelled yet; see pomona safety review label --help")
    write_jsonl(out, rows, overwrite=overwrite)
    if as_json:
        print_json({"file": str(out), "rows": len(rows)})
        return
    print_pairs([("written", str(out)), ("rows", f"{len(rows):,}")])


def _store(db: Path | None) -> ReviewStore:
    from pomona.models.store import cache_dir
    from pomona.safety.review_store import ReviewStore

    return ReviewStore(db or cache_dir() / "review.db")


def _printable(text: str) -> str:
    """A model's words must not steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
