"""`pomona align itec`: the iterative teaching committee (AFM report, section 4.5).

    pomona align itec smollm2-135m-4bit prompts.jsonl --rounds 2 --work committee

The work is done in pomona.posttraining.itec.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pomona.cli.align_mdloo import LiveLine, PromptsArgument, RewardOption
from pomona.cli.align_options import BaseArgument, RecipeOption, SeedOption
from pomona.cli.common import (
    JsonOption,
    ThreadsOption,
    examples,
    new_app,
    print_json,
    print_table,
)
from pomona.errors import PomonaError

app = new_app()


@app.command(
    epilog=examples(
        "pomona align itec smollm2-135m-4bit prompts.jsonl --work committee",
        "pomona align itec smollm2-135m prompts.jsonl --work committee --rounds 2 --member sft=adapters/sft",
        "pomona align itec smollm2-135m prompts.jsonl --work committee --reward model:reward-model --wait",
        "pomona align itec smollm2-135m prompts.jsonl --work committee --preferences judged.jsonl",
    )
)
def itec(
    base: BaseArgument,
    prompts: PromptsArgument,
    work: Annotated[
        Path,
        typer.Option(
            "--work",
            metavar="DIR",
            help="Rounds, members and reports; a second call goes on there.",
            show_default=False,
        ),
    ],
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="More than are done.")] = 1,
    member: Annotated[
        list[str] | None,
        typer.Option(
            "--member",
            metavar="NAME=DIR",
            help="An adapter of the first committee; may be repeated.",
            show_default="the base alone",
        ),
    ] = None,
    technique: Annotated[
        list[str] | None,
        typer.Option(
            "--technique", help="Of new members: rs, dpo, ipo, mdloo; may be repeated.", show_default="all"
        ),
    ] = None,
    reward: RewardOption = "verify",
    preferences: Annotated[
        Path | None,
        typer.Option(
            "--preferences", metavar="FILE", help="What people said of this round.", show_default="none"
        ),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Stop every round until preferences are there.")
    ] = False,
    committee: Annotated[
        int | None, typer.Option("--committee", min=1, help="Members at most.", show_default="recipe's, 5")
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option("--samples", min=1, help="Of a member per prompt.", show_default="recipe's, 2"),
    ] = None,
    prompts_each: Annotated[
        int | None, typer.Option("--prompts", min=1, help="Of one round.", show_default="all")
    ] = None,
    held_out: Annotated[
        int | None,
        typer.Option("--held-out", min=1, help="Prompts that only judge.", show_default="recipe's, 32"),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option("--max-new-tokens", min=1, help="Of a response.", show_default="recipe's, 128"),
    ] = None,
    recipe: RecipeOption = None,
    seed: SeedOption = None,
    restart: Annotated[bool, typer.Option("--restart", help="Forget all rounds in the folder.")] = False,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run rounds of the teaching committee: sample together, choose per prompt, train every member anew."""
    from pomona.models import store
    from pomona.posttraining.itec import ItecOptions, WaitingForPreferences
    from pomona.posttraining.itec import itec as run
    from pomona.posttraining.options import read_recipe
    from pomona.posttraining.prompts import read_prompts

    options = ItecOptions() if recipe is None else read_recipe(recipe, "itec", ItecOptions)
    options = options.with_changes(
        techniques=tuple(technique) if technique else None,
        committee=committee,
        samples=samples,
        prompts=prompts_each,
        held_out=held_out,
        max_new_tokens=max_new_tokens,
        seed=seed,
        wait=wait or None,
    )
    rows = read_prompts(prompts, verifiable=reward.startswith("verify"))
    line = LiveLine()
    try:
        state = run(
            store.resolve(base),
            rows,
            reward,
            work=work,
            rounds=rounds,
            options=options,
            members=[_member(text) for text in member or ()],
            preferences=preferences,
            restart=restart,
            threads=threads,
            progress=line.show,
            on_step=lambda number, step, what: line.end(f"round {number}, {step}: {what}"),
        )
    except WaitingForPreferences as waiting:
        if as_json:
            print_json({"waits_for_preferences": str(waiting.path)})
        else:
            print(str(waiting))
        return
    if as_json:
        print_json(state)
        return
    rows_shown = [
        (one["name"], one["technique"], "" if one["reward"] is None else f"{one['reward']:.3f}")
        for one in state["committee"]
    ]
    print_table(("member", "technique", "held-out reward"), rows_shown)
    page = work / f"round-{state['rounds']:02d}" / "report.html"
    print(f"{state['rounds']} rounds; the last page: {page}")


def _member(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals or not name or not path:
        raise PomonaError(f"--member {text}: write NAME=DIR")
    return name, Path(path)
