"""The report's Table 6 in small: a baseline, pruned, distilled, and both, at equal cost.

    python -m benchmarks.pretraining_table6 --quick
    python -m benchmarks.pretraining_table6 --json table6.json --plot FILE.svg

A wide parent is trained once. Students of a third of its FFN width then spend the same number of floating-
point operations each: training, learning masks and the teacher's passes all count, the parent's own training
does not (one baseline is charged for that too). Everybody ends with the same short stage without a teacher,
as in the report's recipe. Every run is `pomona pretrain`'s own; the teacher's tokens come from one cache.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.common import Goal, Report, machine_facts, run_command, usable_cores
from benchmarks.pretraining_judge import Judgement, judge

SEEDS = 3
BASELINE, LONGER, ALL_IN = "baseline", "baseline, half as much again", "baseline, the parent's cost too"
PRUNED, DISTILLED, BOTH = "pruned", "distilled", "both"
FREE = ", teacher's passes not counted"


@dataclass(frozen=True)
class Scale:
    """How much is run. wide, narrow: FFN channels of parent and students. steps: of the baseline's core."""

    hidden: int
    layers: int
    wide: int
    narrow: int
    parent_steps: int
    steps: int
    mask_steps: int
    last_steps: int  # of the stage without a teacher, which all have
    batch: int
    length: int
    vocabulary: int
    rate: float
    windows: int  # held-out sequences
    text_mb: float


FULL = Scale(128, 4, 1024, 352, 600, 200, 40, 30, 8, 128, 2048, 0.02, 96, 8.0)
QUICK = Scale(64, 2, 192, 64, 12, 12, 4, 3, 4, 32, 512, 0.02, 8, 0.4)


@dataclass(frozen=True)
class Arm:
    """One column of the table. cost: of the core, in the baseline's. free: the teacher's passes are not in
    it. seeds: how many of them are run; None for all."""

    name: str
    prune: bool = False
    distill: bool = False
    free: bool = False
    parent: bool = False
    cost: float = 1.0
    seeds: int | None = None


ARMS = (
    Arm(BASELINE),
    Arm(PRUNED, prune=True),
    Arm(DISTILLED, distill=True),
    Arm(BOTH, prune=True, distill=True),
    Arm(DISTILLED + FREE, distill=True, free=True),
    Arm(BOTH + FREE, prune=True, distill=True, free=True),
    Arm(LONGER, cost=1.5, seeds=1),
    Arm(ALL_IN, parent=True, seeds=1),
)


@dataclass(frozen=True)
class Trial:
    """One run. steps: of its core. core: judged after it; last: after the stage without a teacher."""

    arm: str
    seed: int
    steps: int
    core: Judgement
    last: Judgement


Train = Callable[[Arm, int], Trial]


def run(options: argparse.Namespace) -> Report:
    machine = machine_facts()
    scale = QUICK if options.quick else FULL
    seeds = options.rounds or (1 if options.quick else SEEDS)
    with contextlib.ExitStack() as stack:
        folder = options.folder
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pomona-table6-")))
        runs = Runs(scale, folder.absolute(), options.threads)
        parent = runs.parent()
        trials = every_trial(runs.student, seeds)
    if options.plot is not None:
        options.plot.write_text(picture(trials), encoding="utf-8")
    return Report(
        benchmark="pretraining_table6",
        machine=machine,
        results={
            "threads": options.threads,
            "scale": asdict(scale),
            "rows": rows(trials, scale, parent),
            "notes": notes(trials, scale, seeds),
            "trials": [asdict(trial) for trial in trials],
            "parent": asdict(parent),
        },
        goals=goals(trials),
    )


def every_trial(train: Train, seeds: int) -> list[Trial]:
    """All arms seed by seed, so that an interrupted look at the output compares like with like."""
    return [
        train(arm, seed) for seed in range(seeds) for arm in ARMS if arm.seeds is None or seed < arm.seeds
    ]


# --- cost ------------------------------------------------------------------------------------------------


def flop(scale: Scale, width: int) -> float:
    """Of one token's forward and backward pass with that FFN width."""
    from pomona.pretraining.flops import flop_per_token
    from pomona.pretraining.recipe import ModelSettings

    config = ModelSettings.model_validate(model(scale, width)).config()
    return flop_per_token(replace(config, vocab_size=scale.vocabulary), scale.length)


def core_steps(arm: Arm, scale: Scale) -> int:
    """Steps that are left for the core when everything else of the arm is paid, in the baseline's cost.

    A step of the masks costs one of the wide model; a teacher's pass a third of that.
    """
    narrow, wide = flop(scale, scale.narrow), flop(scale, scale.wide)
    budget = arm.cost * scale.steps * narrow
    budget += scale.parent_steps * wide if arm.parent else 0.0
    budget -= scale.mask_steps * wide if arm.prune else 0.0
    step = narrow + (wide / 3 if arm.distill and not arm.free else 0.0)
    return round(budget / step)


# --- the runs --------------------------------------------------------------------------------------------


class Runs:
    """Trains parent and students in a folder: text and tokenizer are made for the parent and serve all."""

    def __init__(self, scale: Scale, folder: Path, threads: int) -> None:
        from pomona.pretraining.pretrain import use_threads

        use_threads(threads)
        self.scale, self.folder = scale, folder

    def parent(self) -> Judgement:
        """Trains the parent; gives what it is worth."""
        _say("the parent: text, tokenizer, training")
        self._pretrain(parent_recipe(self.scale), "parent")
        found = self._judge("parent", "core", self.scale.wide)
        _say(f"the parent: {found.loss:.4f}")
        return found

    def student(self, arm: Arm, seed: int) -> Trial:
        recipe = student_recipe(arm, self.scale, seed, self.folder)
        name = f"{ARMS.index(arm)}-{seed}"
        self._pretrain(recipe, name)
        judged = [self._judge(name, stage, self.scale.narrow) for stage in ("core", "last")]
        trial = Trial(arm.name, seed, core_steps(arm, self.scale), *judged)
        _say(
            f"{arm.name}, seed {seed}: {trial.core.loss:.4f} after the core, {trial.last.loss:.4f} at the end"
        )
        return trial

    def _pretrain(self, values: Mapping[str, Any], name: str) -> None:
        from pomona.pretraining.pretrain import pretrain
        from pomona.pretraining.recipe import Recipe

        out = self.folder / name
        pretrain(Recipe.model_validate(values), out, resume=(out / "run.json").is_file())

    def _judge(self, name: str, stage: str, width: int) -> Judgement:
        """On the same held-out sequences for all."""
        from pomona.pretraining.prepare import read_prepared
        from pomona.pretraining.recipe import Recipe

        recipe = Recipe.model_validate(parent_recipe(self.scale))
        prepared = read_prepared(self.folder / "parent")
        windows = prepared.held_out(recipe.stages[0], 0, self.scale.windows)
        config = prepared.config(Recipe.model_validate(_recipe(self.scale, width, 0)).model.config())
        (checkpoint,) = (self.folder / name / "stages" / stage).glob("checkpoint-*")
        return judge(checkpoint / "model.safetensors", config, windows)


def model(scale: Scale, width: int) -> dict[str, Any]:
    return {
        "preset": "afm-nano",
        "hidden_size": scale.hidden,
        "intermediate_size": width,
        "num_hidden_layers": scale.layers,
        "num_attention_heads": scale.hidden // 32,
        "num_key_value_heads": scale.hidden // 64,
        "head_dim": 32,
    }


def parent_recipe(scale: Scale) -> dict[str, Any]:
    """The wide model, on text of its own preparation."""
    return _recipe(scale, scale.wide, 0) | {"stages": [_stage("core", scale, scale.parent_steps)]}


def student_recipe(arm: Arm, scale: Scale, seed: int, folder: Path) -> dict[str, Any]:
    """What an arm is, as a recipe: on the parent's tokens and, if it prunes, from the parent's weights."""
    parent = folder / "parent"
    stages = []
    if arm.prune:
        masks = _stage("masks", scale, scale.mask_steps)
        stages.append(masks | {"prune": {"intermediate_size": scale.narrow}})
    core = _stage("core", scale, core_steps(arm, scale))
    if arm.distill:
        core["distill"] = {"teacher": str(parent / "model"), "cache": str(folder / "teacher")}
    stages += [core, _stage("last", scale, scale.last_steps) | {"peak_lr": scale.rate / 10}]
    values = _recipe(scale, scale.wide if arm.prune else scale.narrow, seed + 1)
    values["stages"] = stages
    values["tokenizer"] = {"path": str(parent / "tokenizer")}
    values["data"] = {
        "sources": {"manuals": {"packed": str(parent / "data" / "manuals.train")}},
        "validation": {"manuals": str(parent / "data" / "manuals.held-out")},
    }
    if arm.prune:
        values["start"] = str(parent / "model")
    return values


def _recipe(scale: Scale, width: int, seed: int) -> dict[str, Any]:
    text: dict[str, Any] = {"packages": ["python"], "max_mb": scale.text_mb}
    return {
        "name": "table6",
        "seed": seed,
        "model": model(scale, width),
        "tokenizer": {"vocab_size": scale.vocabulary},
        "data": {"sources": {"manuals": text}, "validation_share": 0.03},
        "precision": "bfloat16",
        "evaluation_windows": 1,  # judged by ourselves
        "keep_checkpoints": 1,
        "stages": [_stage("core", scale, scale.steps)],
    }


def _stage(name: str, scale: Scale, steps: int) -> dict[str, Any]:
    return {
        "name": name,
        "tokens": steps * scale.batch * scale.length,
        "sequence_length": scale.length,
        "batch": scale.batch,
        "peak_lr": scale.rate,
        "floor": 0.005,
        "warm_up": max(steps // 10, 1),
        "weight_decay": 3.16e-4,
        "mixture": {"manuals": 1.0},
        "evaluate_every": steps,
        "save_every": steps,
    }


# --- the report ------------------------------------------------------------------------------------------


def of(trials: Sequence[Trial], arm: str) -> dict[int, Trial]:
    """By seed."""
    return {trial.seed: trial for trial in trials if trial.arm == arm}


def rows(trials: Sequence[Trial], scale: Scale, parent: Judgement) -> list[dict[str, str | float]]:
    """One row per arm: means over the seeds, and the range of the last column."""
    narrow, wide = flop(scale, scale.narrow), flop(scale, scale.wide)
    found = [
        _row(
            f"the parent, FFN {scale.wide}",
            scale.parent_steps * wide / (scale.steps * narrow),
            scale.parent_steps,
            [parent],
            [],
        )
    ]
    for arm in ARMS:
        those = list(of(trials, arm.name).values())
        if not those:
            continue
        extra = core_steps(arm, scale) * wide / 3 if arm.distill and arm.free else 0.0
        extra += scale.parent_steps * wide if arm.parent else 0.0
        cost = arm.cost + extra / (scale.steps * narrow)
        found.append(
            _row(arm.name, cost, those[0].steps, [one.core for one in those], [one.last for one in those])
        )
    return found


def _row(
    name: str, cost: float, steps: int, core: Sequence[Judgement], last: Sequence[Judgement]
) -> dict[str, str | float]:
    def mean(values: Sequence[float], digits: int) -> str:
        return f"{statistics.mean(values):.{digits}f}" if values else ""

    losses = [one.loss for one in last]
    spread = f" ({min(losses):.3f}-{max(losses):.3f})" if len(losses) > 1 else ""
    return {
        "students": name,
        "cost": f"{cost:.2f}",
        "core steps": f"{steps}",
        "loss": mean([one.loss for one in core], 3),
        "at its temperature": mean([one.tempered for one in core], 3),
        "top-1": mean([100 * one.accuracy for one in core], 1) + "%",
        "at the end: loss": mean(losses, 3) + spread,
        "top-1 ": mean([100 * one.accuracy for one in last], 1) + ("%" if last else ""),
        "seeds": f"{len(core)}",
    }


def margins(trials: Sequence[Trial], one: str, other: str) -> list[float]:
    """Loss at the end of `one` less that of `other`, seed by seed, nats per token."""
    mine, theirs = of(trials, one), of(trials, other)
    return [mine[seed].last.loss - theirs[seed].last.loss for seed in sorted(set(mine) & set(theirs))]


PAIRS = ((PRUNED, BASELINE), (DISTILLED, BASELINE), (BOTH, PRUNED), (BOTH, DISTILLED))


def goals(trials: Sequence[Trial]) -> list[Goal]:
    return [
        Goal(
            f"{one} over {other}, equal cost: held-out loss at the end, nats per token",
            statistics.mean(margins(trials, one, other)),
            0.0,
            "<=",
        )
        for one, other in PAIRS
    ]


def notes(trials: Sequence[Trial], scale: Scale, seeds: int) -> list[str]:
    lines = [
        f"students: width {scale.hidden}, {scale.layers} layers, FFN {scale.narrow}, vocabulary "
        f"{scale.vocabulary}; {scale.batch} x {scale.length} tokens of Python documentation per step, peak "
        f"rate {scale.rate:g} for all; {scale.windows} held-out sequences, the same for all, nats per token",
        "cost: FLOP before the last stage over the baseline's; masks "
        f"({scale.mask_steps} steps of the wide model) and the teacher's passes (once per sequence) count "
        "where the row does not say otherwise; the parent's own training does not",
        "at its temperature: logits divided by the number that is best for the other half of the held-out "
        f"text; at the end: after {scale.last_steps} steps without a teacher at a tenth of the rate, which "
        "all have",
        f"one parent for all; {seeds} seeds of initial weights and of the order of the text",
    ]
    for one, other in (
        *PAIRS,
        (DISTILLED + FREE, BASELINE),
        (BOTH + FREE, PRUNED),
        (BOTH, LONGER),
        (PRUNED, LONGER),
        (BOTH, ALL_IN),
    ):
        found = margins(trials, one, other)
        signs = ", ".join(f"{value:+.3f}" for value in found)
        lines.append(f"{one} against {other}: {statistics.mean(found):+.3f} nats ({signs})")
    return lines


def picture(trials: Sequence[Trial]) -> str:
    """Held-out loss by seed, a line per arm, as SVG."""
    from pomona.line_chart import Line, line_chart

    names = [BASELINE, PRUNED, DISTILLED, BOTH, LONGER]
    lines = [
        Line(name, tuple((seed, trial.last.loss) for seed, trial in of(trials, name).items()), dots=True)
        for name in names
    ]
    return line_chart("Held-out loss at equal cost", "seed", "nats per token", lines)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pretraining_table6", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="a tiny model, a few steps, one seed: shows that it runs")
    add("--threads", type=int, default=min(2, usable_cores()), help="CPU threads (default: %(default)s)")
    add("--rounds", type=int, help=f"seeds (default: {SEEDS})")
    add("--folder", type=Path, help="keep the runs there, and go on with those that are there")
    add("--plot", type=Path, metavar="FILE.svg", help="draw the losses by seed")
    add("--json", type=Path, metavar="FILE", help="write the last line to this file too")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
