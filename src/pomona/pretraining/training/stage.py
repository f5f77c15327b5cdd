"""One stage of a recipe, from its start or its newest checkpoint to its end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import TrainingArguments

from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.random_init import initial_values
from pomona.pretraining.curve import Curve, Point
from pomona.pretraining.flops import flop_per_token
from pomona.pretraining.recipe import Recipe, StageSettings
from pomona.pretraining.training import checkpoint
from pomona.pretraining.training.checkpoint import Progress
from pomona.pretraining.training.loss import LossFunction, NextTokenLoss
from pomona.pretraining.training.model import build_model, named_tensors, shard_module, values_from
from pomona.pretraining.training.trainer import Callbacks, StageTrainer, Windows

CURVE = "curve.csv"

Weights = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Processes:
    """The processes of this job. main: the one that writes files."""

    world: int
    rank: int

    @property
    def main(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until all have come here."""
        if self.world > 1:
            torch.distributed.barrier()


def start_processes() -> Processes:
    """Joins the job that torchrun started, or is one process alone."""
    from accelerate import PartialState  # type: ignore[import-untyped]

    state = PartialState(cpu=not torch.cuda.is_available())
    return Processes(state.num_processes, state.process_index)


def train_stage(
    recipe: Recipe,
    stage: StageSettings,
    config: ModelConfig,
    folder: Path,
    *,
    processes: Processes,
    windows: Windows,
    validation: Windows,
    identity: Mapping[str, Any],
    start: Weights | None = None,
    loss: LossFunction | None = None,
    peak_flops: float | None = None,
    on_point: Callable[[Point], None] | None = None,
) -> Path:
    """Trains the stage in `folder` and gives its last checkpoint.

    config: the model of this stage, vocabulary and all. start: float32 weights to begin with; without them
    the initial ones of the recipe's seed. identity: what must be equal for a checkpoint to be gone on from.
    loss: instead of next-token cross-entropy with z-loss. peak_flops: that all devices together can make in a
    second.

    Raises PomonaError: a corrupt checkpoint or one of another recipe, a batch that does not divide among the
    processes, a gradient that stays too large.
    """
    micro = _micro_batch(stage, processes.world)
    if processes.main:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.remove_unfinished(folder)
    processes.wait()
    with ExitStack() as stack:
        saved = stack.enter_context(checkpoint.latest(folder))
        if saved is not None:
            saved.check(identity)
        progress = saved.progress if saved is not None else Progress()
        if progress.step >= stage.steps and saved is not None:
            return saved.path
        args = _arguments(recipe, stage, folder, micro, processes.world, stage.steps - progress.step)
        mesh = device_mesh(processes.world)
        weights = start if saved is None else saved.weights()
        model = build_model(
            config,
            values_from(weights) if weights is not None else _initial(recipe.seed),
            mesh=mesh,
            compute=torch.bfloat16 if recipe.precision == "bfloat16" else torch.float32,
            checkpoint_activations=stage.activation_checkpointing,
        )
        loss = NextTokenLoss(recipe.z_loss) if loss is None else loss
        if isinstance(loss, torch.nn.Module):
            shard_module(loss, mesh)
        curve = stack.enter_context(Curve(folder / CURVE, after=progress.step)) if processes.main else None

        def point(found: Point) -> None:
            if curve is not None:
                curve.add(found)
                if on_point is not None:
                    on_point(found)

        written: list[Path] = []

        def save(now: Progress) -> None:
            written.append(
                checkpoint.save(
                    folder,
                    now,
                    identity,
                    model=named_tensors(model),
                    loss=trainer.loss_tensors,
                    optimizer=trainer.create_optimizer(),
                    keep=recipe.keep_checkpoints,
                    main=processes.main,
                )
            )
            processes.wait()

        trainer = StageTrainer(
            model,
            args,
            stage=stage,
            settings=recipe.optimizer,
            windows=windows,
            validation=validation,
            progress=progress,
            loss=loss,
            width=config.hidden_size,
            flop_per_token=flop_per_token(config, stage.sequence_length),
            peak_flops=peak_flops,
            callbacks=Callbacks(point, save),
            seed=recipe.seed,
        )
        if saved is not None:
            saved.load_loss(trainer.loss_tensors)
            saved.load_optimizer(trainer.create_optimizer(), named_tensors(model), trainer.loss_tensors)
        with _quiet():
            trainer.train()
        return written[-1]


def measured_peak_flops() -> float:
    """FLOP per second of one large bfloat16 product here: what a CPU can make. For GPUs see flops.py."""
    import time

    a = torch.randn(1024, 1024, dtype=torch.bfloat16)
    best = min(_seconds(lambda: a @ a, time.perf_counter) for _ in range(8))
    return 2 * 1024**3 / best


def _seconds(run: Callable[[], Any], clock: Callable[[], float]) -> float:
    started = clock()
    run()
    return clock() - started


def _micro_batch(stage: StageSettings, world: int) -> int:
    share, rest = divmod(stage.batch, world)
    if rest:
        raise PomonaError(
            f"stage {stage.name}: a batch of {stage.batch} does not divide among {world} processes; "
            "start with another --nproc-per-node"
        )
    micro = min(stage.micro_batch or share, share)
    if share % micro:
        raise PomonaError(
            f"stage {stage.name}: {share} sequences per process are no multiple of micro_batch {micro}; "
            "correct micro_batch"
        )
    return micro


def _arguments(
    recipe: Recipe, stage: StageSettings, folder: Path, micro: int, world: int, steps: int
) -> TrainingArguments:
    cpu = not torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=stage.batch // (micro * world),
        max_grad_norm=recipe.optimizer.global_clip,
        bf16=recipe.precision == "bfloat16",
        torch_compile=recipe.compile,
        use_cpu=cpu,
        seed=recipe.seed,
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=not cpu,
        optim="adamw_torch",  # never made: create_optimizer is ours
    )


def device_mesh(world: int) -> Any:
    """The processes of the job as FSDP2 takes them; None for one alone."""
    """The processes of the job as FSDP2 takes them; None for one alone."""
    if world == 1:
        return None
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (world,))


def _initial(seed: int) -> Callable[[str, tuple[int, ...]], NDArray[np.float32]]:
    return lambda name, shape: initial_values(name, shape, seed=seed)


@contextmanager
def _quiet() -> Iterator[None]:
    """The Trainer's own notes (about a column it does not know, for example) are not the user's."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        yield
    finally:
        logging.set_verbosity(level)
