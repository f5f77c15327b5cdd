"""Rounds of iTeC: what the picks are worth round by round, and the distilled student beside every member.

All figures are the verifier's reward, 0 to 1. Rounds have prompts of their own, so that their picks are
compared between different prompts; members and student are compared on the same held-out ones. Intervals are
95% by resampling prompts.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import Row
from benchmarks.peer import ROOT

SEED = 5
RECIPE = ROOT / "recipes" / "post" / "itec-laptop.yaml"


def some_rounds(
    model: str,
    work: Path,
    rounds: int,
    threads: int,
    progress: Callable[[str], None],
    *,
    quick: bool = False,
) -> dict[str, Any]:
    """The steps that were done, and the last committee. Rounds that `work` holds are not run again."""
    from pomona.models.store import resolve
    from pomona.posttraining.instructions import InstructionOptions, make_prompts
    from pomona.posttraining.itec import STATE, ItecOptions, itec
    from pomona.posttraining.options import read_recipe

    options = read_recipe(RECIPE, "itec", ItecOptions)
    if quick:
        few = options.mdloo.with_changes(iterations=1, prompts=2, samples=4, mini_batches=1)
        options = options.with_changes(
            techniques=("rs", "mdloo"), prompts=6, held_out=4, max_new_tokens=24, least_reward=0.0, mdloo=few
        )
    count = options.held_out + rounds * (options.prompts or 1)
    prompts = make_prompts(InstructionOptions(rows=count, seed=SEED))
    there = work / STATE
    before = json.loads(there.read_text(encoding="utf-8"))["rounds"] if there.exists() else 0
    steps: list[str] = []

    def on_step(number: int, step: str, what: str) -> None:
        steps.append(f"round {number}, {step}: {what}")
        progress(steps[-1])

    state = itec(
        resolve(model),
        prompts,
        "verify",
        work=work,
        rounds=max(rounds - before, 0),
        options=options,
        threads=threads,
        progress=lambda label, done, total: progress(f"iTeC: {label} {done}/{total}"),
        on_step=on_step,
    )
    return {"steps": steps, "committee": state["committee"]}


def rows_of_rounds(work: Path, rounds: int) -> list[Row]:
    rows: list[Row] = []
    for number in range(1, rounds + 1):
        folder = work / f"round-{number:02d}"
        rows += [_picks(folder, number), *_members(folder, number)]
    return rows


def _picks(folder: Path, number: int) -> Row:
    from pomona.adapters.metrics import bootstrap
    from pomona.posttraining.itec_report import REWARD

    lines = (folder / "responses.jsonl").read_text(encoding="utf-8").split("\n")
    responses = [json.loads(line) for line in lines if line]
    rewards = json.loads((folder / "scores.json").read_text(encoding="utf-8"))["rewards"]
    by_prompt: dict[int, list[float]] = defaultdict(list)
    for response, reward in zip(responses, rewards, strict=True):
        if reward is not None:
            by_prompt[response["prompt"]].append(reward)
    best = bootstrap(REWARD, [(max(values), 1.0) for values in by_prompt.values()])
    everything = bootstrap(REWARD, [(sum(values), len(values)) for values in by_prompt.values()])
    members = len({response["member"] for response in responses})
    return {
        "what": f"iTeC, round {number}: reward of the picks",
        "value": _shown(best),
        "beside": f"of all {len(responses)} responses of {members} members {_shown(everything)}",
    }


def _members(folder: Path, number: int) -> list[Row]:
    from pomona.adapters.metrics import bootstrap, paired_bootstrap
    from pomona.posttraining.itec_report import REWARD

    evaluated = json.loads((folder / "committee.json").read_text(encoding="utf-8"))
    counts = {name: [(value, 1.0) for value in values] for name, values in evaluated["by_prompt"].items()}
    student = counts.get(f"rs-{number}")
    rows: list[Row] = []
    for member in evaluated["measured"]:
        name = member["name"]
        beside = "the distilled student"
        if student is None:
            beside = "no student came out of this round"
        elif name != f"rs-{number}":
            beside = f"student less it {_shown(paired_bootstrap(REWARD, student, counts[name]), '+')}"
        elected = ", next committee" if name in {one["name"] for one in evaluated["committee"]} else ""
        rows.append(
            {
                "what": f"iTeC, round {number}: held-out reward of {name}",
                "value": _shown(bootstrap(REWARD, counts[name])),
                "beside": beside + elected,
            }
        )
    return rows


def _shown(found: Any, sign: str = "") -> str:
    return f"{found.value:{sign}.3f} ({found.low:{sign}.3f} .. {found.high:{sign}.3f})"
