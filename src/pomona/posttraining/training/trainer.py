"""What every trainer of post-training shares: arguments, a work folder that survives a kill, steps told as
they are made, and steps whose loss is no number left out and counted.

The loops are those of transformers and TRL, so that torchrun, FSDP and accelerate work as anywhere. A run
belongs to its base, data and options; its folder's name is made of them, so that a resumed run is never
another one. Without a time budget it gives the same weights as one that was never interrupted, on the same
machine with the same number of threads.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from pomona.errors import PomonaError
from pomona.posttraining.options import TrainingOptions

CURVE = "curve.jsonl"  # one line per optimizer step
DONE_MARK = "whole"  # in a checkpoint that was written to its end
MAX_BROKEN = 10  # steps in a row without a number, then the run stops

OnStep = Callable[["StepReport"], None]


@dataclass(frozen=True)
class StepReport:
    """One optimizer step. loss: the mean over its rows."""

    step: int
    total: int
    loss: float
    lr: float
    seconds: float  # since the run (or its last part) began


@dataclass
class RunReport:
    """What came of a run. broken_steps: left out because the loss was no number."""

    steps: int = 0
    seconds: float = 0.0
    broken_steps: int = 0
    stopped: str = "done"  # or time
    first: dict[str, float] = field(default_factory=dict)  # evaluation before, where rows were held out
    last: dict[str, float] = field(default_factory=dict)


def training_arguments(
    options: TrainingOptions, folder: Path, kind: type[TrainingArguments] = TrainingArguments, **more: Any
) -> Any:
    """The trainer's arguments for `options`; `more` are those of a kind of trainer."""
    pass_rows = min(options.pass_rows, options.batch)
    if options.batch % pass_rows:
        raise PomonaError(f"batch {options.batch}: must be a multiple of pass_rows {pass_rows}")
    # Defaults of TRL that do not fit a small model on a processor are set here: gradient checkpointing,
    # reports to other services, and a filter that hides losses which are no number.
    return kind(
        output_dir=str(folder),
        per_device_train_batch_size=pass_rows,
        per_device_eval_batch_size=pass_rows,
        gradient_accumulation_steps=options.batch // pass_rows,
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        learning_rate=options.lr,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(options.schedule, options.schedule),
        warmup_steps=options.warm_up,  # below 1: a share of the steps
        weight_decay=options.weight_decay,
        max_grad_norm=options.clip,
        bf16=options.precision == "bfloat16",
        gradient_checkpointing=False,
        seed=options.seed,
        data_seed=options.seed,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="steps",
        save_steps=options.checkpoint_steps,
        save_total_limit=2,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=0,
        remove_unused_columns=False,
        **more,
    )


class Guard:
    """Mixed in before a Trainer class: a pass whose loss is no number drops its optimizer step, counted."""

    broken_steps = 0
    _broken_in_a_row = 0
    _dropped = False

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        if not torch.isfinite(loss).all():
            self._dropped = True
        last_pass = self.accelerator.sync_gradients  # type: ignore[attr-defined]
        if self._dropped and last_pass:
            self._dropped = False
            self.broken_steps += 1
            self._broken_in_a_row += 1
            self.model.zero_grad(set_to_none=True)  # type: ignore[attr-defined]
            if self._broken_in_a_row >= MAX_BROKEN:
                raise PomonaError(
                    f"the loss was no number {MAX_BROKEN} steps in a row; lower the rate, or look at the rows"
                )
        elif last_pass:
            self._broken_in_a_row = 0
        return loss


class _Recorder(TrainerCallback):  # type: ignore[misc]
    def __init__(self, folder: Path, options: TrainingOptions, on_step: OnStep | None) -> None:
        self.folder, self.options, self.on_step = folder, options, on_step
        self.started = time.monotonic()
        self.stopped = "done"

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        loss = float(logs["loss"])
        line = {"step": state.global_step, **{key: value for key, value in logs.items() if key != "epoch"}}
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in line.items()
        }
        with (self.folder / CURVE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")
        if self.on_step is not None:
            seconds = time.monotonic() - self.started
            rate = float(logs.get("learning_rate", 0.0))
            self.on_step(StepReport(state.global_step, state.max_steps, loss, rate, seconds))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        minutes = self.options.minutes
        if minutes is not None and time.monotonic() - self.started >= 60 * minutes:
            self.stopped = "time"
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        (self.folder / f"checkpoint-{state.global_step}" / DONE_MARK).touch()


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; those that are not are deleted."""
    found = []
    for path in folder.glob("checkpoint-*"):
        if (path / DONE_MARK).is_file():
            found.append(path)
        else:
            shutil.rmtree(path, ignore_errors=True)
    return max(found, key=lambda path: int(path.name.partition("-")[2]), default=None)


def run_trainer(
    trainer: Any,
    folder: Path,
    options: TrainingOptions,
    *,
    resume: bool,
    evaluate: Callable[[], dict[str, float]] | None = None,
    on_step: OnStep | None = None,
) -> RunReport:
    """Trains, from the last whole checkpoint if `resume`, and evaluates before and after."""
    checkpoint = last_checkpoint(folder) if resume else None
    first_file = folder / "first.json"
    if checkpoint is None:
        (folder / CURVE).unlink(missing_ok=True)
        first = {} if evaluate is None else evaluate()
        first_file.write_text(json.dumps(first))
    else:
        first = json.loads(first_file.read_text())
        _cut_curve(folder / CURVE, int(checkpoint.name.partition("-")[2]))
    trainer.remove_callback(PrinterCallback)  # steps are told by ours
    recorder = _Recorder(folder, options, on_step)
    trainer.add_callback(recorder)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return RunReport(
        int(trainer.state.global_step),
        time.monotonic() - recorder.started,
        trainer.broken_steps,
        recorder.stopped,
        first,
        {} if evaluate is None else evaluate(),
    )


def _cut_curve(path: Path, step: int) -> None:
    """Forgets what the interrupted run wrote after its last checkpoint."""
    if path.is_file():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
