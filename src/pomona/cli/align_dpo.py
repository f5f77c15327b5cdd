"""`pomona align dpo`: preference optimisation against a reference, without a reward model.

    pomona align dpo smollm2-135m preferences.jsonl --start adapters/sft --out adapters/dpo

The work is done in pomona.posttraining.dpo; `pomona align ipo` (align_ipo.py) is the same with another loss.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pomona.cli.align_options import (
    BaseArgument,
    BatchOption,
    DataOption,
    EpochsOption,
    LrOption,
    MinutesOption,
    PreferencesArgument,
    RankOption,
    RecipeOption,
    RestartOption,
    ResumeOption,
    SeedOption,
    SkipBadOption,
    StartOption,
    StepLine,
    StepsOption,
    ValidationOption,
    WindowOption,
    WorkOption,
    read_preference_data,
    run_lines,
    show_data,
    work_folder,
)
from pomona.cli.common import (
    JsonOption,
    OverwriteOption,
    ThreadsOption,
    examples,
    new_app,
    print_json,
    print_pairs,
)

app = new_app()

OutOption = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="The adapter, a PEFT directory.", show_default=False)
]
BetaOption = Annotated[
    float | None, typer.Option("--beta", help="Of the KL to the reference.", show_default="recipe's, 0.1")
]


def preference_command(loss: Literal["dpo", "ipo"], about: str) -> Callable[..., None]:
    """The command of a loss; both take the same options."""

    def command(
        base: BaseArgument,
        data: PreferencesArgument,
        out: OutOption,
        beta: BetaOption = None,
        recipe: RecipeOption = None,
        start: StartOption = None,
        rank: RankOption = None,
        lr: LrOption = None,
        epochs: EpochsOption = None,
        steps: StepsOption = None,
        minutes: MinutesOption = None,
        batch: BatchOption = None,
        window: WindowOption = None,
        validation: ValidationOption = None,
        seed: SeedOption = None,
        skip_bad: SkipBadOption = False,
        data_folder: DataOption = None,
        work: WorkOption = None,
        resume: ResumeOption = False,
        restart: RestartOption = False,
        threads: ThreadsOption = None,
        overwrite: OverwriteOption = False,
        as_json: JsonOption = False,
    ) -> None:
        changes = {
            "beta": beta,
            "rank": rank,
            "lr": lr,
            "epochs": epochs,
            "max_steps": steps,
            "minutes": minutes,
            "batch": batch,
            "window": window,
            "validation": validation,
            "seed": seed,
        }
        _run(
            loss,
            base,
            data,
            out,
            recipe,
            changes,
            as_json=as_json,
            skip_bad=skip_bad,
            data_folder=data_folder,
            work=work_folder(work, resume, restart),
            start=start,
            resume=resume,
            restart=restart,
            threads=threads,
            overwrite=overwrite,
        )

    command.__doc__ = about
    return command


def _run(
    loss: Literal["dpo", "ipo"],
    base: str,
    data: str,
    out: Path,
    recipe: Path | None,
    changes: dict[str, Any],
    *,
    as_json: bool,
    skip_bad: bool,
    data_folder: Path | None,
    **run: Any,
) -> None:
    """What both commands do."""
    from pomona.models import store
    from pomona.posttraining.dpo import preference_optimize
    from pomona.posttraining.options import PreferenceOptions, read_recipe

    rows, report = read_preference_data(data, data_folder, skip_bad)
    options = PreferenceOptions() if recipe is None else read_recipe(recipe, loss, PreferenceOptions)
    result = preference_optimize(
        store.resolve(base),
        rows,
        out,
        data=report,
        options=options.with_changes(loss=loss, **changes),
        on_data=show_data,
        on_step=StepLine().show,
        **run,
    )
    if as_json:
        print_json({**result.to_json(), "data": report.to_json()})
        return
    lines = [("written", str(result.directory)), *run_lines(result.run)]
    if result.run.last:
        last = result.run.last
        lines.append(("held-out pairs", f"accuracy {last['accuracy']:.3f}, margin {last['margin']:+.3f}"))
    print_pairs(lines)


dpo = app.command(
    "dpo",
    epilog=examples(
        "pomona align dpo smollm2-135m preferences.jsonl --start adapters/sft --out adapters/dpo",
        "pomona align dpo smollm2-135m-4bit dpo_pairs --out adapters/dpo --minutes 30",
    ),
)(
    preference_command(
        "dpo", "Train an adapter by DPO: the better response gains on the reference, the worse one loses."
    )
)
