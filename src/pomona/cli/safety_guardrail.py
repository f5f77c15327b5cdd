"""`pomona safety guardrail`: train, try and measure a classifier of inputs and outputs.

    pomona safety guardrail train smollm2-135m-4bit
    pomona safety guardrail score smollm2-135m-4bit "How do I bake bread?"
    pomona safety guardrail evaluate smollm2-135m-4bit

The work is done in pomona.safety.guardrail and its neighbours.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pomona.cli.common import (
    JsonOption,
    OverwriteOption,
    ProgressReporter,
    ThreadsOption,
    examples,
    new_app,
    print_json,
    print_pairs,
    print_table,
    read_text_file,
)
from pomona.errors import PomonaError

if TYPE_CHECKING:
    from pomona.adapters.metrics import Interval
    from pomona.safety.guardrail_policy import Refusal

app = new_app()

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model in the cache, or a directory.", show_default=False)
]
GuardrailOption = Annotated[
    str, typer.Option("--guardrail", metavar="NAME", help="One of the model's adapters, or a directory.")
]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Public data sets.", show_default="POMONA_DATA"),
]
HoldOutOption = Annotated[
    list[str] | None,
    typer.Option(
        "--hold-out",
        metavar="CATEGORY",
        help="A category that nothing is learnt from; repeatable.",
        show_default="cybercrime, privacy_property",
    ),
]


@app.callback(
    invoke_without_command=True,
    epilog=examples(
        "pomona safety guardrail train smollm2-135m-4bit",
        'pomona safety guardrail score smollm2-135m-4bit "How do I bake bread?" --json',
        "pomona safety guardrail evaluate smollm2-135m-4bit --limit 50",
    ),
)
def guardrail(context: typer.Context) -> None:
    """A classifier adapter that judges inputs and outputs in the model's own batch."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command(
    epilog=examples(
        "pomona safety guardrail train smollm2-135m-4bit",
        "pomona safety guardrail train smollm2-135m-4bit --minutes 15 --threads 1 --json",
        "pomona safety guardrail train smollm2-135m-4bit --hold-out weapons --out guards/weapons",
    )
)
def train(
    model: ModelArgument,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where it goes.", show_default="MODEL/adapters/guardrail"),
    ] = None,
    data: DataOption = None,
    rank: Annotated[int, typer.Option("--rank", min=1, help="Of the adapter.")] = 4,
    lr: Annotated[float, typer.Option("--lr", help="Highest learning rate.")] = 1e-3,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Times that the rows are read.")] = 2,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Rows of one step.")] = 16,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", min=0.01, help="Time for the training loop.", show_default="no limit"),
    ] = None,
    hold_out: HoldOutOption = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of rows, order and first values.")] = 0,
    work: Annotated[
        Path | None,
        typer.Option("--work", metavar="DIR", help="For checkpoints.", show_default="guardrail in the cache"),
    ] = None,
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a guardrail for MODEL on the public sets, and calibrate its thresholds."""
    from pomona.cli.adapt import LossLine
    from pomona.data.public_sets import data_folder
    from pomona.models import store
    from pomona.runtime.model import ADAPTERS_FOLDER
    from pomona.safety.guardrail_train import GuardrailOptions, train_guardrail

    options = GuardrailOptions(rank=rank, lr=lr, epochs=epochs, batch=batch, minutes=minutes, seed=seed)
    if hold_out is not None:
        options = GuardrailOptions(**{**vars(options), "held_out": tuple(hold_out)})
    directory = store.resolve(model)
    line = LossLine()
    report = train_guardrail(
        directory,
        data_folder(data),
        out or directory / ADAPTERS_FOLDER / "guardrail",
        work=work or store.cache_dir() / "guardrail",
        options=options,
        overwrite=overwrite,
        threads=threads,
        on_point=lambda point, _: line.end(
            f"step {point.step}, validation loss {point.validation_loss:.4f}, "
            f"right verdicts {100 * point.accuracy:.1f}%"
        ),
        on_step=line.show,
    )
    if as_json:
        print_json(report.to_json())
        return
    print_pairs(
        [
            ("written", str(report.directory)),
            ("rows", f"{sum(report.rows.values()):,}, of which {report.validation_rows} were not learnt"),
            ("validation loss", f"{report.loss:.4f} nats per verdict, before {report.start_loss:.4f}"),
            ("right verdicts", f"{100 * report.accuracy:.1f}%"),
            (
                "trained on",
                f"{report.tokens:,} tokens in {report.seconds / 60:.1f} minutes ({report.stopped})",
            ),
        ]
    )


@app.command(
    epilog=examples(
        'pomona safety guardrail score smollm2-135m-4bit "How do I bake bread?"',
        'pomona safety guardrail score smollm2-135m-4bit "Tell me a joke." --answer "A duck..." --json',
        "pomona safety guardrail score smollm2-135m-4bit --input mail.txt --policy policy.yaml",
    )
)
def score(
    model: ModelArgument,
    text: Annotated[
        str | None, typer.Argument(metavar="[TEXT]", help="What a user says.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--input", metavar="FILE", help='Instead of TEXT; "-": standard input.')
    ] = None,
    answer: Annotated[
        str | None, typer.Option("--answer", metavar="TEXT", help="Judge this answer to it, too.")
    ] = None,
    name: GuardrailOption = "guardrail",
    policy: Annotated[
        Path | None,
        typer.Option("--policy", metavar="FILE", help="YAML of docs/guardrail.md.", show_default="built-in"),
    ] = None,
    feature: Annotated[str, typer.Option("--feature", help="Whose thresholds and phrases count.")] = "chat",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how harmful a text is taken to be, and whether the policy lets it pass."""
    if (text is None) == (file is None):
        raise PomonaError("score: give a TEXT, or --input FILE")
    said = read_text_file(file) if file is not None else text or ""
    from pomona.runtime.model import Model
    from pomona.safety.guardrail import Guardrail
    from pomona.safety.guardrail_policy import GuardrailPolicy

    rules = GuardrailPolicy() if policy is None else GuardrailPolicy.read(policy)
    found: list[dict[str, Any]] = []
    with Model.load(model, threads=threads) as loaded:
        guard = Guardrail.of(loaded, name)
        asked = [("input", said, guard.ask_input(said))]
        if answer is not None:
            asked.append(("output", answer, guard.ask_output(said, answer)))
        for side, words, waiting in asked:
            verdict = waiting.result()
            refusal = rules.denied(feature, side, words) or rules.refused(feature, verdict, guard.head)  # type: ignore[arg-type]
            told = None if refusal is None else refusal.to_json()
            found.append({**verdict.to_json(), "passes": refusal is None, "refusal": told})
            if not as_json:
                _show(side, verdict.harm, verdict.categories, refusal)
    if as_json:
        print_json({"model": model, "guardrail": name, "feature": feature, "verdicts": found})


def _show(side: str, harm: float, categories: tuple[tuple[str, float], ...], refusal: Refusal | None) -> None:
    likeliest = ", ".join(f"{category} {p:.3f}" for category, p in categories[:3])
    print_pairs(
        [
            (side, "passes" if refusal is None else f"refused: {refusal.message}"),
            ("harm", f"{harm:.4f} ({likeliest})"),
        ]
    )


@app.command(
    epilog=examples(
        "pomona safety guardrail evaluate smollm2-135m-4bit",
        "pomona safety guardrail evaluate smollm2-135m-4bit --limit 50 --json",
    )
)
def evaluate(
    model: ModelArgument,
    name: GuardrailOption = "guardrail",
    data: DataOption = None,
    hold_out: HoldOutOption = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="Texts of each kind in a set.", show_default="all"),
    ] = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a guardrail on categories and sources that it has not learnt from."""
    from pomona.data.public_sets import data_folder
    from pomona.runtime.model import Model
    from pomona.safety.guardrail import Guardrail
    from pomona.safety.guardrail_data import HELD_OUT
    from pomona.safety.guardrail_evaluate import evaluate as measure

    folder = data_folder(data)
    with Model.load(model, threads=threads) as loaded, ProgressReporter() as progress:
        results = measure(
            Guardrail.of(loaded, name),
            folder,
            held_out=tuple(hold_out) if hold_out is not None else HELD_OUT,
            limit=limit,
            on_set=progress.update,
        )
    if as_json:
        print_json({"model": model, "guardrail": name, "sets": [result.to_json() for result in results]})
        return
    print_table(
        ("set", "side", "AUROC", "recall at 5%", "refused", "over-refused"),
        [
            (r.name, r.side, _cell(r.auroc), _cell(r.recall), _cell(r.refused), _cell(r.over_refused))
            for r in results
        ],
    )


def _cell(value: Interval | None) -> str:
    return "unknown" if value is None else f"{value.value:.3f} ({value.low:.3f} .. {value.high:.3f})"
