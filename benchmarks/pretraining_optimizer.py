"""The report's optimizer with muParam against AdamW, tuned over the same rates, at two widths.

    python -m benchmarks.pretraining_optimizer [--quick] [--threads 2] [--rounds 3] [--plot FILE.svg]

All runs read the same tokens in the same order and differ in width, optimizer and peak rate alone; the best
rate of each is then run with more seeds. Beside that: how far the optimizer is from two float64 references on
a fixed sequence of gradients (optimizer_references.py).
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.common import Goal, Report, machine_facts, run_command, usable_cores
from benchmarks.optimizer_references import Rule, adastar, unrolled

OURS, ADAMW = "RMSProp with momentum + muParam", "AdamW"
RATES = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16)
SEEDS = 3
HEAD = 32  # channels of a head: the width decides how many there are
GRADIENTS = 20  # in the fixed sequence


@dataclass(frozen=True)
class Scale:
    """How much is run: widths, steps, rates."""

    widths: tuple[int, int]
    layers: int
    steps: int
    batch: int
    length: int
    rates: tuple[float, ...]
    vocabulary: int
    text_mb: float


FULL = Scale((64, 256), 4, 160, 16, 128, RATES, 2048, 6.0)
QUICK = Scale((32, 64), 2, 12, 8, 32, (0.01, 0.02), 512, 0.4)


@dataclass(frozen=True)
class Trial:
    """One run. loss: of held-out text after it, nats per token."""

    optimizer: str
    width: int
    rate: float
    seed: int
    loss: float


Train = Callable[[str, int, float, int], float]  # optimizer, width, rate, seed -> held-out loss


def run(options: argparse.Namespace) -> Report:
    machine = machine_facts()
    scale = QUICK if options.quick else FULL
    seeds = options.rounds or (1 if options.quick else SEEDS)
    with tempfile.TemporaryDirectory() as folder:
        train = trainer(scale, Path(folder), options.threads)
        trials = sweep(train, scale, seeds)
    difference = largest_difference()
    if options.plot is not None:
        options.plot.write_text(picture(trials, scale), encoding="utf-8")
    return Report(
        benchmark="pretraining_optimizer",
        machine=machine,
        results={
            "threads": options.threads,
            "rows": rows(trials, scale),
            "notes": notes(trials, scale, difference),
            "trials": [vars(trial) for trial in trials],
            "difference_from_references": difference,
        },
        goals=goals(trials, scale, difference),
    )


# --- the runs --------------------------------------------------------------------------------------------


def trainer(scale: Scale, folder: Path, threads: int) -> Train:
    """Text, tokenizer and packed tokens once; what it gives trains one model through `train_stage`."""
    import torch

    from pomona.pretraining.prepare import prepare
    from pomona.pretraining.training.stage import start_processes, train_stage

    torch.set_num_threads(threads)
    first = recipe(scale, OURS, scale.widths[0], scale.rates[0], 0)
    _say("text, tokenizer and packed tokens")
    prepared = prepare(first, folder / "prepared")
    processes = start_processes()

    def train(optimizer: str, width: int, rate: float, seed: int) -> float:
        one = recipe(scale, optimizer, width, rate, seed)
        (stage,) = one.stages
        last: list[float] = []
        with tempfile.TemporaryDirectory(dir=folder) as run_folder:
            train_stage(
                one,
                stage,
                prepared.config(one.config(stage)),
                Path(run_folder) / "stage",
                processes=processes,
                windows=prepared.windows(stage, 0),  # the same order for all: seeds change the start alone
                validation=prepared.held_out(stage, 0, one.evaluation_windows),
                identity={},
                on_point=lambda point: last.append(point.validation_loss or np.nan),
            )
        return last[-1]

    return train


def recipe(scale: Scale, optimizer: str, width: int, rate: float, seed: int) -> Any:
    """The recipe of one run. AdamW as in the baseline of the report's table 5: betas 0.9 and 0.95, decay
    1e-4."""
    from pomona.pretraining.recipe import Recipe

    ours = optimizer == OURS
    text: dict[str, Any] = {"packages": ["python"], "max_mb": scale.text_mb}
    return Recipe.model_validate(
        {
            "name": "optimizer",
            "seed": seed,
            "model": {
                "preset": "afm-nano",
                "hidden_size": width,
                "intermediate_size": 8 * width // 3 // 16 * 16,
                "num_hidden_layers": scale.layers,
                "num_attention_heads": width // HEAD,
                "num_key_value_heads": max(width // HEAD // 2, 1),
                "head_dim": HEAD,
            },
            "tokenizer": {"vocab_size": scale.vocabulary},
            "data": {"sources": {"manuals": text}, "validation_share": 0.03},
            "optimizer": {
                "kind": "rmsprop-momentum" if ours else "adamw",
                "betas": (0.95, 0.95) if ours else (0.9, 0.95),
                "muparam_base_width": scale.widths[0] if ours else None,
            },
            "precision": "bfloat16",
            "stages": [
                {
                    "name": "core",
                    "tokens": scale.steps * scale.batch * scale.length,
                    "sequence_length": scale.length,
                    "batch": scale.batch,
                    "peak_lr": rate,
                    "floor": 0.005,
                    "warm_up": max(scale.steps // 10, 1),
                    "weight_decay": 3.16e-4 if ours else 1e-4 * rate,
                    "mixture": {"manuals": 1.0},
                    "evaluate_every": scale.steps,
                    "save_every": scale.steps,
                }
            ],
        }
    )


def sweep(train: Train, scale: Scale, seeds: int) -> list[Trial]:
    """All rates with one seed, then the best rate of each with the others."""
    found: list[Trial] = []

    def one(optimizer: str, width: int, rate: float, seed: int) -> None:
        with contextlib.suppress(_diverged()):
            found.append(Trial(optimizer, width, rate, seed, train(optimizer, width, rate, seed)))
            _say(f"{optimizer}, width {width}, rate {rate:g}, seed {seed}: {found[-1].loss:.4f}")
            return
        found.append(Trial(optimizer, width, rate, seed, float("inf")))

    for width in scale.widths:
        for rate in scale.rates:
            for optimizer in (OURS, ADAMW):
                one(optimizer, width, rate, 0)
    for width in scale.widths:
        for seed in range(1, seeds):
            for optimizer in (OURS, ADAMW):
                one(optimizer, width, best_rate(found, optimizer, width), seed)
    return found


def _diverged() -> type[Exception]:
    """What a run raises whose gradients stay too large."""
    from pomona.errors import PomonaError

    return PomonaError


def best_rate(trials: Sequence[Trial], optimizer: str, width: int) -> float:
    """Of the first seed."""
    those = [one for one in trials if (one.optimizer, one.width, one.seed) == (optimizer, width, 0)]
    return min(those, key=lambda one: one.loss).rate


def best_losses(trials: Sequence[Trial], optimizer: str, width: int) -> list[float]:
    """Of all seeds, at the best rate."""
    rate = best_rate(trials, optimizer, width)
    return [one.loss for one in trials if (one.optimizer, one.width, one.rate) == (optimizer, width, rate)]


# --- the rule --------------------------------------------------------------------------------------------


def largest_difference(kind: Literal["float32", "float64"] = "float32") -> float:
    """Of the weights after a fixed sequence of gradients, from either reference, over max(1, |weight|)."""
    import torch

    from pomona.pretraining.schedule import schedule
    from pomona.pretraining.training.optimizer import RMSPropMomentum

    rng = np.random.default_rng(0)
    start = rng.normal(size=(48, 32))
    gradients = [rng.normal(size=start.shape) * 10.0 ** rng.uniform(-4, 1) for _ in range(GRADIENTS)]

    def share(count: int) -> float:
        return schedule(count - 1, steps=GRADIENTS, warm_up=5, floor=0.005)

    w = torch.nn.Parameter(torch.tensor(start, dtype=getattr(torch, kind)))
    optimizer = RMSPropMomentum([w], lr=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share(step + 1))
    for gradient in gradients:
        w.grad = torch.tensor(gradient, dtype=w.dtype)
        optimizer.step()
        scheduler.step()
    ours = w.detach().double().numpy()
    references = (adastar(start, gradients, share, Rule()), unrolled(start, gradients, share))
    return max(float((np.abs(ours - one) / np.maximum(1, np.abs(one))).max()) for one in references)


# --- the report ------------------------------------------------------------------------------------------


def rows(trials: Sequence[Trial], scale: Scale) -> list[dict[str, str | float]]:
    """One row per rate: the first seed's loss of each optimizer at each width."""
    losses = {(one.optimizer, one.width, one.rate): one.loss for one in trials if one.seed == 0}
    short = {OURS: "ours", ADAMW: "AdamW"}
    found: list[dict[str, str | float]] = []
    for rate in scale.rates:
        row: dict[str, str | float] = {"peak rate": f"{rate:g}"}
        for width in scale.widths:
            for optimizer in (OURS, ADAMW):
                row[f"{short[optimizer]}, width {width}"] = f"{losses[optimizer, width, rate]:.4f}"
        found.append(row)
    return found


def goals(trials: Sequence[Trial], scale: Scale, difference: float) -> list[Goal]:
    small, large = (best_rate(trials, OURS, width) for width in scale.widths)
    found = [
        Goal(
            f"width {width}: held-out loss of ours over tuned AdamW's, nats per token",
            statistics.mean(best_losses(trials, OURS, width))
            - statistics.mean(best_losses(trials, ADAMW, width)),
            0.0,
            "<=",
        )
        for width in scale.widths
    ]
    found.append(
        Goal(
            f"ours: best rate of width {scale.widths[0]} against that of {scale.widths[1]}, the larger "
            "over the smaller",
            max(small, large) / min(small, large),
            2.0,
            "<=",
        )
    )
    found.append(Goal("float32 against the references, in millionths", 1e6 * difference, 1.0, "<="))
    return found


def notes(trials: Sequence[Trial], scale: Scale, difference: float) -> list[str]:
    lines = [
        f"{scale.steps} steps of {scale.batch} x {scale.length} tokens of Python documentation, "
        f"{scale.layers} "
        f"layers, vocabulary {scale.vocabulary}; loss of held-out text, nats per token; muParam's "
        "base width is "
        f"{scale.widths[0]}, so its factor is {scale.widths[0] / scale.widths[1]:g} at the larger",
    ]
    for width in scale.widths:
        for optimizer in (OURS, ADAMW):
            losses = best_losses(trials, optimizer, width)
            rate = best_rate(trials, optimizer, width)
            edge = ", at the edge of the rates" if rate in (scale.rates[0], scale.rates[-1]) else ""
            lines.append(
                f"{optimizer}, width {width}: best at {rate:g}{edge}, {statistics.mean(losses):.4f} over "
                f"{len(losses)} seeds ({min(losses):.4f} to {max(losses):.4f})"
            )
    adamw = [best_rate(trials, ADAMW, width) for width in scale.widths]
    lines.append(
        "AdamW without muParam: its best rates at the two widths are a factor of "
        f"{max(adamw) / min(adamw):g} apart"
    )
    lines.append(
        f"{GRADIENTS} fixed gradients: the largest difference from the references is {difference:.1e}"
    )
    return lines


def picture(trials: Sequence[Trial], scale: Scale) -> str:
    """Loss over peak rate as SVG, one line per optimizer and width."""
    from pomona.line_chart import Line, line_chart

    lines = [
        Line(
            f"{'ours' if optimizer == OURS else optimizer}, width {width}",
            tuple(
                (one.rate, one.loss)
                for one in trials
                if (one.optimizer, one.width, one.seed) == (optimizer, width, 0)
            ),
            dots=True,
            dashed=optimizer == ADAMW,
        )
        for width in scale.widths
        for optimizer in (OURS, ADAMW)
    ]
    return line_chart(
        "Held-out loss over the peak learning rate", "peak rate", "nats per token", lines, log_x=True
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pretraining_optimizer", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="two rates, tiny widths, a few steps: shows that it runs")
    add("--threads", type=int, default=min(2, usable_cores()), help="CPU threads (default: %(default)s)")
    add("--rounds", type=int, help=f"seeds at the best rates (default: {SEEDS})")
    add("--plot", type=Path, metavar="FILE.svg", help="draw the losses over the rates")
    add("--json", type=Path, metavar="FILE", help="write the last line to this file too")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
