"""`pomona write`: the language features on a file or standard input.

    pomona write proofread letter.txt
    pomona write summarize mail.txt --style "three sentences"

The result goes to standard output, who made it to standard error. On a terminal, corrections are shown in the
text.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pomona.cli.common import (
    IsaOption,
    JsonOption,
    ThreadsOption,
    examples,
    has_colour,
    new_app,
    note,
    print_json,
    read_text_file,
)
from pomona.errors import PomonaError

if TYPE_CHECKING:
    from pomona.adapters.edits import Edit
    from pomona.features.results import Origin

Feature = Literal["summarize", "proofread", "rewrite", "key-points", "reply", "prioritize", "extract"]
RED, GREEN, OFF = "\x1b[31;9m", "\x1b[32m", "\x1b[0m"

app = new_app()


@app.command(
    epilog=examples(
        "pomona write proofread letter.txt",
        'pomona write summarize mail.txt --style "three sentences"',
        "pomona write rewrite note.txt --tone professional",
        "pomona write extract mail.txt --schema ticket.json --json",
        "cat notifications.txt | pomona write prioritize -",
    )
)
def write(
    feature: Annotated[
        Feature,
        typer.Argument(
            metavar="FEATURE",
            help="summarize, proofread, rewrite, key-points, reply, prioritize or extract.",
            show_default=False,
        ),
    ],
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="UTF-8 text; `-` is standard input.", show_default=False)
    ],
    model: Annotated[
        str, typer.Option("--model", help="A model in the cache, or a directory.")
    ] = "smollm2-135m-4bit",
    adapter: Annotated[
        str | None,
        typer.Option(
            "--adapter",
            help="Adapter that answers; `base`: none.",
            show_default="the feature's, if there is one",
        ),
    ] = None,
    tone: Annotated[
        str | None, typer.Option("--tone", help="Of rewrite: friendly, professional or concise.")
    ] = None,
    style: Annotated[
        str | None, typer.Option("--style", help='Of summarize: "one line" or "three sentences".')
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", help='Of summarize: "e-mail", "thread" or "notifications".')
    ] = None,
    schema: Annotated[
        Path | None,
        typer.Option(
            "--schema",
            metavar="FILE",
            help="Of extract: a JSON schema.",
            show_default="contacts and events",
        ),
    ] = None,
    threads: ThreadsOption = None,
    isa: IsaOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Summarize, correct, rewrite, answer, sort or extract: FEATURE on the text in FILE."""
    for option, value, owner in (
        ("--tone", tone, "rewrite"),
        ("--style", style, "summarize"),
        ("--kind", kind, "summarize"),
        ("--schema", schema, "extract"),
    ):
        if value is not None and feature != owner:
            raise PomonaError(f"{option}: is an option of {owner}; leave it out")
    text = read_text_file(file)
    if not text.strip():
        raise PomonaError(f"{file}: is empty; give a text")
    options: dict[str, Any] = {"adapter": adapter}
    named = {"tone": tone, "style": style, "kind": kind}
    options |= {key: value for key, value in named.items() if value is not None}
    if schema is not None:
        options["schema"] = _schema(schema)

    from pomona.runtime.model import Model

    with Model.load(model, threads=threads, isa=isa) as loaded:
        _answer(feature, text, {**options, "model": loaded}, as_json)


def _answer(feature: Feature, text: str, options: dict[str, Any], as_json: bool) -> None:
    from pomona.features import writing

    name = {"key-points": "key_points", "reply": "replies"}.get(feature, feature)
    given: Any = text
    if feature == "prioritize":
        given = [line.strip() for line in text.splitlines() if line.strip()]
    result = getattr(writing, name)(given, **options)
    if as_json:
        print_json({"feature": feature, **_plain(asdict(result))})
        return
    for line in shown(feature, given, result):
        sys.stdout.write(line + "\n")
    sys.stdout.flush()
    note(origin_line(result.origin))
    if not getattr(result, "complete", True):
        note("the answer was cut off: the model came to no end")
    if getattr(result, "kept", 0):
        note(
            f"{result.kept} of {result.parts} pieces were left as they were: the answers were no corrections"
        )


def shown(feature: Feature, given: Any, result: Any) -> list[str]:
    """The result as lines for people."""
    colour = has_colour(sys.stdout)
    if feature in ("proofread", "rewrite"):
        return [word_diff(given, result.edits) if colour else result.text]
    if feature == "key-points":
        return [f"- {printed(point)}" for point in result.points]
    if feature == "reply":
        asked = [f"? {printed(question)}" for question in result.questions]
        return [*asked, *(f"- {printed(reply)}" for reply in result.replies)]
    if feature == "prioritize":
        marks = {True: "urgent    ", False: "not urgent"}
        return [f"{marks[result.urgent[i]]}  {printed(given[i])}" for i in result.order]
    if feature == "extract":
        return [json.dumps(_plain(result.value), ensure_ascii=False, indent=2)]
    return [printed(result.text)]


def word_diff(text: str, edits: Sequence[Edit]) -> str:
    """The text with what goes in red and struck out, and what comes in green."""
    parts, at = [], 0
    for edit in edits:
        parts.append(printed(text[at : edit.start]))
        parts.append(f"{RED}{printed(edit.original)}{OFF}" if edit.original else "")
        parts.append(f"{GREEN}{printed(edit.replacement)}{OFF}" if edit.replacement else "")
        at = edit.end
    return "".join([*parts, printed(text[at:])])


def printed(text: str) -> str:
    """Without control characters on a terminal: what a model wrote must not move the cursor."""
    from pomona.cli.run import printable

    return printable(text) if sys.stdout.isatty() else text


def origin_line(origin: Origin) -> str:
    with_what = "without an adapter" if origin.adapter is None else f"with the adapter {origin.adapter}"
    requests = "1 answer" if origin.requests == 1 else f"{origin.requests} answers"
    return f"{origin.model} {with_what}, {requests}, on the {origin.place}"


def _schema(path: Path) -> dict[str, Any]:
    from pomona.models.model_directory import read_json_object

    return read_json_object(path)


def _plain(value: Any) -> Any:
    """Pydantic instances as JSON."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
