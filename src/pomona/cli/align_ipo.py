"""`pomona align ipo`: like DPO, with a squared loss that no certain preference drives to infinity.

    pomona align ipo smollm2-135m preferences.jsonl --start adapters/sft --out adapters/ipo

The work is done in pomona.posttraining.dpo.
"""

from __future__ import annotations

from pomona.cli.align_dpo import BetaOption, OutOption, run_preference
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
    StepsOption,
    ValidationOption,
    WindowOption,
    WorkOption,
    work_folder,
)
from pomona.cli.common import (
    JsonOption,
    OverwriteOption,
    ThreadsOption,
    examples,
    new_app,
)

app = new_app()


@app.command(
    epilog=examples(
        "pomona align ipo smollm2-135m preferences.jsonl --start adapters/sft --out adapters/ipo",
        "pomona align ipo smollm2-135m-4bit dpo_pairs --out adapters/ipo --minutes 30",
    )
)
def ipo(
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
    """Train an adapter by IPO: the gap between the responses is led to 1 / (2 beta), and no further."""
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
    run_preference(
        "ipo",
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
