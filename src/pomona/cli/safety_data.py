"""`pomona safety data`: training rows and tags by the taxonomy.

    pomona safety data refusals rows.jsonl --set advbench
    pomona safety data tag web.jsonl --out tagged.jsonl

The work is done in pomona.safety: training_rows.py and tagging.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pomona.cli.common import JsonOption, OverwriteOption, examples, new_app, print_json, print_pairs

app = new_app()


@app.callback(invoke_without_command=True, epilog=examples("pomona safety data refusals --help"))
def data(context: typer.Context) -> None:
    """Safety data for pre- and post-training, tagged by the taxonomy."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command(
    epilog=examples(
        "pomona safety data refusals rows.jsonl --set advbench --set do_not_answer",
        "pomona safety data refusals rows.jsonl --set mine.jsonl --part all --json",
    )
)
def refusals(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A .jsonl file to write.", show_default=False)],
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Of prompts, or a .jsonl file; may be repeated.",
            show_default="advbench and do_not_answer",
        ),
    ] = None,
    part: Annotated[
        str, typer.Option("--part", help="train, test or all; the red team tests on `test`.")
    ] = "train",
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Prompts of each set.", show_default="all")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Other seeds, other wordings.")] = 0,
    folder: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Public data sets.", show_default="POMONA_DATA"),
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write refusals that say why, as rows of `pomona align sft`."""
    from collections import Counter
    from typing import cast

    from pomona.data.public_sets import data_folder
    from pomona.safety.prompt_sets import SETS, Part, read_set, spread
    from pomona.safety.training_rows import refusal_rows, write_jsonl

    names = tuple(sets or ("advbench", "do_not_answer"))
    public = data_folder(folder) if any(name in SETS for name in names) else None
    prompts = [prompt for name in names for prompt in spread(read_set(name, public, cast(Part, part)), limit)]
    rows, left_out = refusal_rows(prompts, seed=seed)
    write_jsonl(out, [row.to_json() for row in rows], overwrite=overwrite)
    groups = Counter(row.prompt.group for row in rows)
    if as_json:
        print_json(
            {
                "file": str(out),
                "rows": len(rows),
                "left_out": left_out,
                "categories": dict(groups.most_common()),
            }
        )
        return
    print_pairs(
        [
            ("written", str(out)),
            ("rows", f"{len(rows):,}"),
            *((f"left out: {why}", f"{count:,}") for why, count in left_out.items()),
            *((name, f"{count:,}") for name, count in groups.most_common()),
        ]
    )


@app.command(
    epilog=examples(
        "pomona safety data tag web.jsonl --out tagged.jsonl --license ODC-BY",
        "pomona safety data tag documents --out kept.jsonl --drop-above 0.02 --json",
    )
)
def tag(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="Documents: .jsonl, text, or folders.", show_default=False),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="A .jsonl file to write.", show_default=False)
    ],
    license: Annotated[
        str | None,
        typer.Option("--license", help="Of documents that name none.", show_default="unknown"),
    ] = None,
    drop_above: Annotated[
        float | None,
        typer.Option(
            "--drop-above",
            min=0.0,
            max=1.0,
            help="Leave out documents with a larger share of words of harm.",
            show_default="keep all",
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Tag documents of pre-training by kinds of harm."""
    from pomona.safety.tagging import tag_documents

    counts = tag_documents(paths, out, license=license, drop_above=drop_above, overwrite=overwrite)
    if as_json:
        print_json({"file": str(out), **counts.to_json()})
        return
    print_pairs(
        [
            ("written", str(out)),
            ("documents", f"{counts.documents:,}"),
            ("with tags", f"{counts.tagged:,}"),
            ("left out", f"{counts.dropped:,}"),
            ("unreadable", f"{len(counts.skipped):,}"),
            *((name, f"{count:,}") for name, count in counts.tags.most_common(12)),
        ]
    )
