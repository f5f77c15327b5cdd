"""`pomona safety memorisation`: does an adapter remember what it should not?

    pomona safety memorisation plant notes.jsonl planted.jsonl --canaries canaries.jsonl
    pomona safety memorisation probe smollm2-135m-4bit --adapter notes --canaries canaries.jsonl

The work is done in pomona.safety.memorisation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pomona.cli.common import (
    JsonOption,
    OverwriteOption,
    ThreadsOption,
    examples,
    new_app,
    print_json,
    print_pairs,
    print_table,
)
from pomona.errors import PomonaError

app = new_app()

CanariesOption = Annotated[
    Path, typer.Option("--canaries", metavar="FILE", help="The planted secrets.", show_default=False)
]


@app.callback(invoke_without_command=True, epilog=examples("pomona safety memorisation plant --help"))
def memorisation(context: typer.Context) -> None:
    """Plant secrets into training rows, and ask the adapter for them."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command(
    epilog=examples(
        "pomona safety memorisation plant notes.jsonl planted.jsonl --canaries canaries.jsonl",
        "pomona adapt smollm2-135m-4bit planted.jsonl --name notes-probe",
    )
)
def plant(
    rows: Annotated[
        Path, typer.Argument(metavar="ROWS", help="Rows of `pomona adapt`, as .jsonl.", show_default=False)
    ],
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="The rows with the secrets between them.", show_default=False),
    ],
    canaries: CanariesOption,
    count: Annotated[int, typer.Option("--count", min=1, max=256, help="Different secrets.")] = 9,
    repeats: Annotated[
        str, typer.Option("--repeats", help="How often each is planted, in turn; 0 for a control.")
    ] = "1,4,16",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Other seeds, other secrets.")] = 0,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write training rows with planted secrets."""
    from pomona.adapters.data import read_rows
    from pomona.safety.memorisation import make_canaries, write_canaries
    from pomona.safety.memorisation import plant as planted
    from pomona.safety.training_rows import write_jsonl

    try:
        times = tuple(int(word) for word in repeats.split(","))
    except ValueError as error:
        raise PomonaError(f"--repeats {repeats}: write numbers with commas between them: 1,4,16") from error
    if canaries.exists() and not overwrite:
        raise PomonaError(f"{canaries}: is there already; give --overwrite, or choose another name")
    read, report = read_rows(rows)
    if report.bad:
        raise PomonaError(f"{rows}: cannot be trained on ({report.first_bad()}); mend it first")
    made = make_canaries(count, repeats=times, seed=seed)
    plain = [
        {
            "messages": [dict(message) for message in row.messages],
            **({"license": row.license} if row.license else {}),
            **({"source": row.source} if row.source else {}),
        }
        for row in read
    ]
    mixed = planted(plain, made, seed=seed)
    write_jsonl(out, mixed, overwrite=overwrite)
    write_canaries(canaries, made)
    if as_json:
        print_json(
            {"file": str(out), "rows": len(mixed), "canaries": len(made), "planted": len(mixed) - len(plain)}
        )
        return
    print_pairs(
        [
            ("written", f"{out}, {canaries}"),
            ("rows", f"{len(mixed):,}"),
            ("secrets", f"{len(made)}, planted {len(mixed) - len(plain):,} times in all"),
        ]
    )


@app.command(
    epilog=examples(
        "pomona safety memorisation probe smollm2-135m-4bit --adapter notes-probe --canaries canaries.jsonl",
        "pomona safety memorisation probe small --adapter notes-probe --canaries canaries.jsonl --json",
    )
)
def probe(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A model in the cache, or a directory.", show_default=False),
    ],
    adapter: Annotated[
        str, typer.Option("--adapter", metavar="NAME", help="Of the model.", show_default=False)
    ],
    canaries: CanariesOption,
    references: Annotated[
        int, typer.Option("--references", min=15, help="Other secrets that each is ranked among.")
    ] = 255,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the exposure of the planted secrets; exit code 0 whatever it finds."""
    from pomona.runtime.model import Model
    from pomona.safety.memorisation import P_LIMIT, read_canaries
    from pomona.safety.memorisation import probe as measure

    secrets = read_canaries(canaries)
    with Model.load(model, threads=threads) as loaded:
        report = measure(loaded, secrets, adapter=adapter, references=references)
    if as_json:
        print_json(report.to_json())
        return
    print_table(
        ("secret of the", "planted", "exposure, bits", "rank", "written"),
        [
            (
                one.place,
                str(one.repeats),
                f"{one.bits:.2f}",
                f"{one.rank} of {one.candidates}",
                "yes" if one.extracted else "no",
            )
            for one in report.ours.canaries
        ],
    )
    print(f"adapter: mean {report.ours.mean_bits:.2f} bits, p = {report.ours.p:.2g}")
    print(f"base:    mean {report.base.mean_bits:.2f} bits, p = {report.base.p:.2g}")
    if not report.sound:
        print("the base seems to know the secrets: plant others, and train again")
    else:
        verdict = "memorises" if report.memorises else "does not memorise"
        print(f"the adapter {verdict} (threshold: p < {P_LIMIT})")
