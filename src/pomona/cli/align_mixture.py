"""`pomona align mixture`: weights of a fine-tuning mixture by trials (AFM report, section 4.3).

    pomona align mixture smollm2-135m mixture.yaml --benchmark held_out.jsonl --out tuned.yaml

The work is done in pomona.posttraining.mixture and mixture_trials.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pomona.cli.align_options import BaseArgument, RecipeOption, WorkOption, work_folder
from pomona.cli.common import (
    JsonOption,
    OverwriteOption,
    ThreadsOption,
    examples,
    new_app,
    note,
    print_json,
    print_table,
)
from pomona.errors import PomonaError

if TYPE_CHECKING:
    from pomona.posttraining.mixture import Trial

app = new_app()


@app.command(
    epilog=examples(
        "pomona align mixture smollm2-135m mixture.yaml --benchmark held_out.jsonl --out tuned.yaml",
        "pomona align mixture smollm2-135m mixture.yaml --benchmark a.jsonl --benchmark b.jsonl "
        "--out tuned.yaml --recipe recipes/post/mixture-laptop.yaml",
    )
)
def mixture(
    base: BaseArgument,
    file: Annotated[
        Path, typer.Argument(metavar="MIXTURE", help="Components and weights (.yaml).", show_default=False)
    ],
    benchmark: Annotated[
        list[Path],
        typer.Option(
            "--benchmark", metavar="FILE", help="Rows to score by; may be repeated.", show_default=False
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The tuned mixture (.yaml).", show_default=False)
    ],
    recipe: RecipeOption = None,
    delta: Annotated[
        float | None, typer.Option("--delta", help="Step of a weight, relative.", show_default="0.5")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, help="Rounds of trials.", show_default="2")
    ] = None,
    rows: Annotated[
        int | None, typer.Option("--rows", min=1, help="Of one training.", show_default="1000")
    ] = None,
    work: WorkOption = None,
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Tune the weights of MIXTURE: each one up and down, the better way kept. Run again, it goes on."""
    if out.exists() and not overwrite:
        raise PomonaError(f"{out}: is there already; choose another file, or use --overwrite")
    folder = work_folder(work, False, False)

    from pomona.adapters.data import read_rows
    from pomona.models import store
    from pomona.posttraining.mixture import (
        MixtureOptions,
        read_components,
        read_mixture,
        tune_mixture,
        write_mixture,
    )
    from pomona.posttraining.mixture_trials import SftTrials
    from pomona.posttraining.options import read_recipe

    given = MixtureOptions() if recipe is None else read_recipe(recipe, "mixture", MixtureOptions)
    options = given.with_changes(delta=delta, rounds=rounds, rows=rows)
    mix = read_mixture(file)
    components = {name: found for name, (found, _) in read_components(file, mix).items()}
    trials = SftTrials(
        store.resolve(base),
        components,
        {path.name: read_rows(path)[0] for path in benchmark},
        options,
        folder,
        threads=threads,
    )

    def shown(trial: Trial) -> None:
        note(f"{trial.what}: loss {trial.score:.4f}")

    report = tune_mixture(mix.weights, trials.score, options, on_trial=shown)
    write_mixture(out, mix, report.weights)
    if as_json:
        print_json({**report.to_json(), "out": out})
        return
    rows_shown = [
        (name, f"{mix.weights[name]:.3f}", f"{weight:.3f}" if weight else "dropped")
        for name, weight in report.weights.items()
    ]
    print_table(("component", "before", "after"), rows_shown)
    print(f"loss {report.last:.4f} nats per token, before {report.first:.4f}; {trials.made} trainings")
    print(f"written to {out}")
