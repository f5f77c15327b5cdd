"""`pomona pretrain`: train a base model from text by a recipe; `pomona pretrain plan`: what a run would need.

    pomona pretrain recipes/laptop/afm-nano.yaml --out runs/nano
    pomona pretrain plan --model afm-on-device --devices 64xH100

The work is done in pomona.pretraining: pretrain.py and plan.py.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from pomona.cli.common import (
    JsonOption,
    ProgressReporter,
    ThreadsOption,
    examples,
    format_bytes,
    new_app,
    note,
    print_json,
    print_pairs,
    print_table,
)
from pomona.errors import PomonaError

if TYPE_CHECKING:
    from pomona.pretraining.curve import Point
    from pomona.pretraining.plan import Plan
    from pomona.pretraining.prepare import Prepared
    from pomona.pretraining.pretrain import RunReport
    from pomona.pretraining.recipe import StageSettings

_QUIET_SECONDS = 30.0  # between two lines where there is no terminal
_RUN = "run"


class _RecipeFirst(TyperGroup):
    """`pomona pretrain RECIPE` is `pomona pretrain run RECIPE`: the recipe needs no word before it."""

    def parse_args(self, context: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = [_RUN, *args]
        return super().parse_args(context, args)


app = new_app()


@app.callback(
    cls=_RecipeFirst,
    invoke_without_command=True,
    epilog=examples(
        "pomona pretrain recipes/laptop/afm-nano.yaml --out runs/nano",
        "pomona pretrain recipes/laptop/afm-nano.yaml --out runs/nano --resume",
        "torchrun --nproc-per-node 8 -m pomona pretrain RECIPE --out runs/device",
        "pomona pretrain plan --model afm-on-device --devices 64xH100 --json",
    ),
)
def pretrain(context: typer.Context) -> None:
    """Train a base model from text, by a recipe; or plan such a run. See `pomona pretrain RECIPE --help`."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command(
    _RUN,
    epilog=examples(
        "pomona pretrain recipes/laptop/afm-nano.yaml --out runs/nano",
        "pomona pretrain recipes/laptop/afm-nano.yaml --out runs/nano --gguf",
        "pomona pretrain recipes/laptop/afm-nano.yaml --out runs/nano --resume",
    ),
)
def run(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A YAML file, see docs/pretrain.md.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="The run's folder.", show_default="runs/NAME"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Forget the run that is there.")] = False,
    gguf: Annotated[bool, typer.Option("--gguf", help="Write model.gguf for llama.cpp too.")] = False,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train the stages of a recipe one after the other; the end product is DIR/model."""
    if resume and restart:
        raise PomonaError("--resume and --restart: one goes on with the run, the other forgets it; give one")
    from pomona.pretraining.pretrain import pretrain as pretrain_model
    from pomona.pretraining.pretrain import use_threads
    from pomona.pretraining.recipe import load_recipe

    settings = load_recipe(recipe)
    folder = out or Path("runs") / settings.name
    use_threads(threads)
    line = CurveLine()
    with ProgressReporter() as progress:
        report = pretrain_model(
            settings,
            folder,
            resume=resume,
            restart=restart,
            gguf=gguf,
            progress=progress.update,
            on_start=_say_what_is_missing,
            on_point=line.show,
        )
    line.end()
    if report is None:  # another process of the job tells
        return
    if as_json:
        print_json(report.to_json())
    else:
        _show_report(report, folder)


@app.command(
    epilog=examples(
        "pomona pretrain plan --model afm-on-device --devices 64xH100",
        "pomona pretrain plan --model afm-on-device --devices 64xH100 --utilisation 0.5 --micro-batch 4",
        "pomona pretrain plan --recipe recipes/report/afm-server.yaml --devices 512xB200",
    ),
)
def plan(
    model: Annotated[
        str | None, typer.Option("--model", help="A preset; its stages are the report's.", show_default=False)
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="Model and stages of a recipe.", show_default=False)
    ] = None,
    on: Annotated[
        str, typer.Option("--devices", help="How many of what, as 64xH100.", show_default=False)
    ] = "64xH100",
    utilisation: Annotated[float, typer.Option("--utilisation", help="Model FLOP made over the peak.")] = 0.4,
    micro_batch: Annotated[
        int | None,
        typer.Option(
            "--micro-batch", min=1, help="Sequences per device and pass.", show_default="1, or the recipe's"
        ),
    ] = None,
    no_recompute: Annotated[
        bool, typer.Option("--no-recompute", help="Without activation checkpointing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Memory per device, tokens per second, days and checkpoints of a run, from formulas."""
    from dataclasses import asdict, replace

    from pomona.models.presets import preset
    from pomona.pretraining.plan import REPORT_STAGES, PlannedStage, devices
    from pomona.pretraining.plan import plan as make_plan
    from pomona.pretraining.recipe import load_recipe

    if (model is None) == (recipe is None):
        raise PomonaError("plan: give either --model or --recipe")
    stages: tuple[PlannedStage, ...] = REPORT_STAGES
    where = devices(on)
    if recipe is not None:
        settings = load_recipe(recipe)
        config = settings.model.config()
        stages = tuple(
            PlannedStage(
                one.name,
                one.tokens,
                one.sequence_length,
                one.tokens_per_step,
                one.save_every,
                one.micro_batch or -(-one.batch // where.count),
                settings.config(one).intermediate_size,
            )
            for one in settings.stages
        )
    else:
        config = preset(model or "")
    if micro_batch is not None:
        stages = tuple(replace(stage, micro_batch=micro_batch) for stage in stages)
    found = make_plan(config, where, stages, utilisation=utilisation, recompute=not no_recompute)
    if as_json:
        extra = {"days": found.days, "memory_total": found.memory.total, "fits": found.memory.fits}
        print_json(asdict(found) | extra)
    else:
        _show_plan(found)


class CurveLine:
    """The loss as it falls: one line that is written over on a terminal, else one now and then."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._shown = 0.0
        self._started = time.monotonic()
        self._first: dict[str, int] = {}

    def show(self, stage: StageSettings, point: Point) -> None:
        if point.validation_loss is not None:
            self.end()
            note(f"{stage.name}, step {point.step}: validation loss {point.validation_loss:.4f}")
        if stage.name not in self._first:
            self._first[stage.name], self._started = point.step - 1, time.monotonic()
        if not self._live and time.monotonic() - self._shown < _QUIET_SECONDS:
            return
        self._shown = time.monotonic()
        parts = [f"{stage.name} {point.step}/{stage.steps}", f"loss {point.loss:.4f}"]
        parts.append(f"gradient {point.gradient_norm:.2f}{' DROPPED' if point.dropped else ''}")
        if point.tokens_per_second:
            parts.append(f"{point.tokens_per_second:,.0f} tokens/s")
        if point.utilisation:
            parts.append(f"{100 * point.utilisation:.0f}% of peak")
        made = point.step - self._first[stage.name]
        if made > 1:
            left = (stage.steps - point.step) * (time.monotonic() - self._started) / (made - 1)
            parts.append(f"{left / 60:.0f} minutes left" if left >= 90 else f"{left:.0f} s left")
        sys.stderr.write(f"\r\x1b[K{', '.join(parts)}" if self._live else f"{', '.join(parts)}\n")
        sys.stderr.flush()

    def end(self) -> None:
        if self._live:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _say_what_is_missing(prepared: Prepared) -> None:
    for name in prepared.left_out:
        note(f"source {name}: its text is not here (POMONA_DATA?); the run goes without it")


def _show_report(report: RunReport, folder: Path) -> None:
    rows = [
        (
            one.name,
            f"{one.steps:,}",
            f"{one.tokens:,}",
            f"{one.dropped}",
            f"{one.loss:.4f}",
            f"{one.validation_loss:.4f}",
            "" if one.tokens_per_second is None else f"{one.tokens_per_second:,.0f}",
            "" if one.utilisation is None else f"{100 * one.utilisation:.0f}%",
            f"{one.seconds / 60:.1f}",
        )
        for one in report.stages
    ]
    columns = ("stage", "steps", "tokens", "dropped", "loss", "held out", "tokens/s", "of peak", "minutes")
    print_table(columns, rows)
    pairs = [
        (
            "model",
            f"{report.model} ({report.parameters / 1e6:.1f} M parameters, {report.vocab_size:,} tokens)",
        )
    ]
    if report.gguf is not None:
        pairs.append(("for llama.cpp", str(report.gguf)))
    pairs.append(("curves", str(folder / "stages")))
    pairs.append(
        ("it writes", " ".join((report.sample or "(a shape that our runtime does not run)").split()))
    )
    print_pairs(pairs)


def _show_plan(found: Plan) -> None:
    m, on = found.memory, found.devices
    columns = ("stage", "tokens", "sequence", "steps", "GFLOP/token", "tokens/s", "days", "checkpoints")
    rows = [
        (
            one.name,
            f"{one.tokens / 1e9:,.0f} B" if one.tokens >= 1e9 else f"{one.tokens / 1e6:,.1f} M",
            f"{one.sequence_length:,}",
            f"{one.steps:,}",
            f"{one.flop_per_token / 1e9:.3g}",
            f"{one.tokens_per_second:,.0f}",
            f"{one.days:,.1f}" if one.days >= 0.05 else f"{one.days:.2g}",
            f"{one.checkpoints:,}",
        )
        for one in found.stages
    ]
    print_table(columns, rows)
    mode = "activations recomputed" if found.recompute else "activations kept"
    fits = "fits" if m.fits else "DOES NOT FIT: more devices, or a smaller --micro-batch"
    print_pairs(
        [
            ("parameters", f"{found.parameters / 1e9:.3f} B"),
            (
                "devices",
                f"{on.count} x {on.kind}, {on.flops / 1e12:,.0f} TFLOP/s each, "
                f"{found.utilisation:.0%} of that",
            ),
            ("days in all", f"{found.days:,.1f}"),
            ("memory per device", f"{format_bytes(int(m.total))} of {format_bytes(int(m.device))}, {fits}"),
            ("  weights, gradients, states", format_bytes(int(m.states))),
            ("  gathered layers", format_bytes(int(m.gathered))),
            (f"  {mode}", f"{format_bytes(int(m.activations))} at {found.pass_tokens:,} tokens a pass"),
            ("  logits", format_bytes(int(m.logits))),
            ("  optimizer's temporaries", format_bytes(int(m.temporaries))),
            ("  set aside", format_bytes(int(m.reserve))),
            ("checkpoint", format_bytes(int(found.checkpoint_bytes))),
            ("model in 16 bit", format_bytes(int(found.model_bytes))),
        ]
    )
