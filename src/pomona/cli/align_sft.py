"""`pomona align sft`: supervised fine-tuning on dialogues (AFM report, section 4.3).

    pomona align sft smollm2-135m chats.jsonl --out adapters/sft --recipe recipes/post/sft-laptop.yaml

The work is done in pomona.posttraining.sft.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pomona.cli.align_options import (
    BaseArgument,
    BatchOption,
    EpochsOption,
    FullOption,
    LrOption,
    MinutesOption,
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


@app.command(
    epilog=examples(
        "pomona align sft smollm2-135m chats.jsonl --out adapters/sft",
        "pomona align sft smollm2-135m chats.jsonl --out sft-model --full --lr 0.00002",
        "pomona align sft smollm2-135m mixture.yaml --out adapters/sft --resume",
    )
)
def sft(
    base: BaseArgument,
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Rows as for pomona adapt, or a mixture (.yaml) of such files.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="DIR", help="The adapter, or with --full the model.", show_default=False
        ),
    ],
    recipe: RecipeOption = None,
    full: FullOption = False,
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
    work: WorkOption = None,
    resume: ResumeOption = False,
    restart: RestartOption = False,
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune on dialogues: only the assistant's answers are learnt."""
    folder = work_folder(work, resume, restart)

    from pomona.models import store
    from pomona.posttraining.mixture import read_sft_data
    from pomona.posttraining.options import SftOptions, read_recipe
    from pomona.posttraining.sft import sft_rows

    options = (SftOptions() if recipe is None else read_recipe(recipe, "sft", SftOptions)).with_changes(
        weights="full" if full else None,
        rank=rank,
        lr=lr,
        epochs=epochs,
        max_steps=steps,
        minutes=minutes,
        batch=batch,
        window=window,
        validation=validation,
        seed=seed,
    )
    rows, report = read_sft_data(data, seed=options.seed)
    result = sft_rows(
        store.resolve(base),
        rows,
        report,
        out,
        work=folder,
        options=options,
        start=start,
        skip_bad=skip_bad,
        resume=resume,
        restart=restart,
        overwrite=overwrite,
        threads=threads,
        on_data=show_data,
        on_step=StepLine().show,
    )
    if as_json:
        print_json({**result.to_json(), "data": report.to_json()})
        return
    lines = [("written", str(result.directory)), *run_lines(result.run)]
    if result.run.last:
        first, last = result.run.first["loss"], result.run.last["loss"]
        lines.append(("held-out loss", f"{last:.4f} nats per token, before {first:.4f}"))
    print_pairs(lines)
