"""`pomona align mdloo`: reinforcement learning of an adapter on rewards (AFM report, section 4.6).

    pomona align mdloo smollm2-135m-4bit prompts.jsonl --out adapters/polite --reward verify

The work is done in pomona.posttraining.mdloo.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pomona.cli.align_options import (
    BaseArgument,
    LrOption,
    MinutesOption,
    RankOption,
    RecipeOption,
    RestartOption,
    ResumeOption,
    SeedOption,
    StartOption,
    WorkOption,
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
)
from pomona.errors import PomonaError
from pomona.posttraining.mdloo_options import KlEstimator, Method

app = new_app()

PromptsArgument = Annotated[
    Path,
    typer.Argument(
        metavar="PROMPTS", help="Rows with `messages`, and `verify` for verifiers.", show_default=False
    ),
]
RewardOption = Annotated[
    str,
    typer.Option(
        "--reward", help="verify, verify:strict, model:DIR or function:package.module.name.", metavar="WHAT"
    ),
]
SecondsOption = Annotated[
    float, typer.Option("--reward-seconds", min=0.01, help="Of a function for one response.")
]


@app.command(
    epilog=examples(
        "pomona align mdloo smollm2-135m-4bit prompts.jsonl --out adapters/polite --reward verify",
        "pomona align mdloo smollm2-135m prompts.jsonl --out adapters/rl --reward model:reward-model",
        "pomona align mdloo smollm2-135m prompts.jsonl --out adapters/rloo --method rloo --minutes 25",
        "pomona align mdloo smollm2-135m-4bit prompts.jsonl --out adapters/polite --resume",
    )
)
def mdloo(
    base: BaseArgument,
    prompts: PromptsArgument,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="The adapter, a PEFT directory.", show_default=False)
    ],
    reward: RewardOption = "verify",
    reward_seconds: SecondsOption = 10.0,
    method: Annotated[
        Method | None,
        typer.Option("--method", help="mdloo, rloo or rs (rejection sampling).", show_default="recipe's"),
    ] = None,
    iterations: Annotated[
        int | None, typer.Option("--iterations", min=1, help="At most.", show_default="recipe's, 20")
    ] = None,
    prompts_each: Annotated[
        int | None,
        typer.Option("--prompts", min=1, help="Of one iteration.", show_default="recipe's, 8"),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option("--samples", min=2, help="Responses to each prompt.", show_default="recipe's, 8"),
    ] = None,
    beta: Annotated[
        float | None,
        typer.Option("--beta", help="Of the KL to the reference.", show_default="recipe's, 0.02"),
    ] = None,
    gamma: Annotated[
        float | None,
        typer.Option("--gamma", help="Of the KL within the step.", show_default="recipe's, 0.1"),
    ] = None,
    estimator: Annotated[
        KlEstimator | None,
        typer.Option("--estimator", help="Of the KL within the step.", show_default="recipe's, exact"),
    ] = None,
    inner_steps: Annotated[
        int | None,
        typer.Option("--inner-steps", min=1, help="Of one iteration.", show_default="recipe's, 4"),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option("--max-new-tokens", min=1, help="Of a response.", show_default="recipe's, 128"),
    ] = None,
    recipe: RecipeOption = None,
    start: StartOption = None,
    rank: RankOption = None,
    lr: LrOption = None,
    minutes: MinutesOption = None,
    seed: SeedOption = None,
    work: WorkOption = None,
    resume: ResumeOption = False,
    restart: RestartOption = False,
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train an adapter by MDLOO: sample, reward, compare with one another, step within a trust region."""
    from pomona.models import store
    from pomona.posttraining.mdloo import mdloo as train
    from pomona.posttraining.mdloo_options import MdlooOptions
    from pomona.posttraining.options import read_recipe
    from pomona.posttraining.prompts import read_prompts
    from pomona.posttraining.rewards import parse_reward

    options = MdlooOptions() if recipe is None else read_recipe(recipe, "mdloo", MdlooOptions)
    changes = {
        "method": method,
        "iterations": iterations,
        "prompts": prompts_each,
        "samples": samples,
        "beta": beta,
        "gamma": gamma,
        "estimator": estimator,
        "inner_steps": inner_steps,
        "max_new_tokens": max_new_tokens,
        "rank": rank,
        "lr": lr,
        "minutes": minutes,
        "seed": seed,
    }
    if method == "rloo":  # it has one look and no trust region, whatever the recipe of mdloo says
        changes |= {"gamma": gamma or 0.0, "inner_steps": inner_steps or options.mini_batches}
    options = options.with_changes(**changes)
    rows = read_prompts(prompts, verifiable=reward.startswith("verify"))
    judge = parse_reward(reward, seconds=reward_seconds)
    line = LiveLine()
    try:
        report = train(
            store.resolve(base),
            rows,
            judge,
            work=work_folder(work, resume, restart),
            name=out.name,
            options=options,
            start=start,
            target=out,
            resume=resume,
            restart=restart,
            overwrite=overwrite,
            threads=threads,
            progress=line.show,
            on_iteration=lambda one: line.end(one.line()),
        )
    finally:
        judge.close()
    if not report.iterations:
        raise PomonaError("no iteration was made: raise --minutes")
    if as_json:
        print_json(report.to_json())
        return
    first, last = report.iterations[0], report.iterations[-1]
    print_pairs(
        [
            ("written", str(report.directory)),
            ("reward", f"{last.reward:.3f}, in the first iteration {first.reward:.3f}"),
            ("KL to the reference", f"{last.kl_reference:.2f} nats per response"),
            (
                "trained",
                f"{len(report.iterations):,} iterations in {report.seconds / 60:.1f} minutes "
                f"({report.stopped})",
            ),
        ]
    )


class LiveLine:
    """What goes on at this moment: one line that is written over on a terminal, nothing elsewhere."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()

    def show(self, label: str, done: int, total: int) -> None:
        if self._live:
            sys.stderr.write(f"\r\x1b[K{label} {done}/{total}" if total > 1 else f"\r\x1b[K{label}")
            sys.stderr.flush()

    def end(self, text: str) -> None:
        """A line that stays."""
        if self._live:
            sys.stderr.write("\r\x1b[K")
        note(text)
