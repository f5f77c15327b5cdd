"""`pomona align reward`: the graded reward model (AFM report, section 4.4).

    pomona align reward smollm2-135m preferences.jsonl --out reward-model
    pomona align reward reward-model preferences.jsonl --evaluate

The work is done in pomona.posttraining: reward.py, reward_model.py and reward_report.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pomona.cli.align_options import (
    BatchOption,
    DataOption,
    EpochsOption,
    FullOption,
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
    note,
    print_json,
    print_pairs,
    print_table,
)
from pomona.errors import PomonaError

if TYPE_CHECKING:
    from pomona.posttraining.reward_report import RewardReport

app = new_app()


@app.command(
    epilog=examples(
        "pomona align reward smollm2-135m preferences.jsonl --out reward-model",
        "pomona align reward smollm2-135m hh_rlhf --out reward-model --labels hard",
        "pomona align reward reward-model preferences.jsonl --evaluate",
        "pomona align reward reward-model responses.jsonl --best-of",
    )
)
def reward(
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE",
            help="A model in the cache, or a directory; with --evaluate or --best-of a reward model.",
            show_default=False,
        ),
    ],
    data: PreferencesArgument,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="The reward model.", show_default=False)
    ] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Judge the reward model BASE on DATA; train nothing.")
    ] = False,
    best_of: Annotated[
        bool, typer.Option("--best-of", help="Best-of-N curve of BASE on DATA, rows of several responses.")
    ] = False,
    labels: Annotated[
        Literal["soft", "hard", "margin"] | None,
        typer.Option("--labels", help="What a level means for the loss.", show_default="soft"),
    ] = None,
    grading_weight: Annotated[
        float | None,
        typer.Option("--grading-weight", help="Lambda of the gradings' loss.", show_default="0.1"),
    ] = None,
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
    data_folder: DataOption = None,
    work: WorkOption = None,
    resume: ResumeOption = False,
    restart: RestartOption = False,
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a reward model on preferences and gradings, or judge one."""
    if best_of:
        _best_of(base, Path(data), threads, as_json)
        return
    rows, report = read_preference_data(data, data_folder, skip_bad)
    if evaluate:
        from pomona.posttraining.reward_model import RewardModel
        from pomona.posttraining.reward_report import evaluate as evaluate_model
        from pomona.posttraining.work import need_training, set_threads

        need_training("reward")
        set_threads(threads)
        show_data(report)
        judged = evaluate_model(RewardModel.load(base), rows)
        if as_json:
            print_json({"version": 1, **judged.to_json(), "data": report.to_json()})
        else:
            _show(judged)
        return
    if out is None:
        raise PomonaError("--out: say where the reward model goes, or give --evaluate to judge one")
    folder = work_folder(work, resume, restart)

    from pomona.models import store
    from pomona.posttraining.options import RewardOptions, read_recipe
    from pomona.posttraining.reward import train_reward

    options = RewardOptions() if recipe is None else read_recipe(recipe, "reward", RewardOptions)
    result = train_reward(
        store.resolve(base),
        rows,
        out,
        work=folder,
        data=report,
        options=options.with_changes(
            weights="full" if full else None,
            labels=labels,
            grading_weight=grading_weight,
            rank=rank,
            lr=lr,
            epochs=epochs,
            max_steps=steps,
            minutes=minutes,
            batch=batch,
            window=window,
            validation=validation,
            seed=seed,
        ),
        start=start,
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
    print_pairs([("written", str(result.directory)), *run_lines(result.run)])
    if result.held_out is not None:
        _show(result.held_out)


def _show(report: RewardReport) -> None:
    if report.not_finite:
        note(f"{report.not_finite} pairs have a reward that is no number; they are left out")
    if report.accuracy is None:
        print("no pair to judge by")
        return
    rows = [
        (name or "no level", f"{one.rows:,}", f"{one.value:.3f} ({one.low:.3f} .. {one.high:.3f})", gap)
        for name, one, gap in [
            ("all pairs", report.accuracy, ""),
            *((level, one, f"{report.gap[level]:+.3f}") for level, one in report.by_level.items()),
        ]
    ]
    print_table(("held-out pairs", "pairs", "accuracy", "mean gap"), rows)
    print(f"calibration error {report.calibration_error:.3f}")
    for question, (one, commonest) in report.gradings.items():
        print(f"{question}: right grade {one.value:.3f} of {one.rows:,}, the commonest alone {commonest:.3f}")


def _best_of(model: str, data: Path, threads: int | None, as_json: bool) -> None:
    from pomona.posttraining.best_of import curve_of_file
    from pomona.posttraining.work import need_training, set_threads

    need_training("reward")
    set_threads(threads)
    curve = curve_of_file(model, data)
    if as_json:
        print_json(curve.to_json())
        return
    print_table(
        ("best of", "reward", "gold", "prompts"),
        [
            (str(n), f"{reward:+.4f}", "-" if gold is None else f"{gold:.4f}", f"{prompts:,}")
            for n, reward, gold, prompts in curve.points
        ],
    )
    if curve.not_finite:
        note(f"{curve.not_finite} responses have a reward that is no number; they are never picked")
