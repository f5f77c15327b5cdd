"""transformers' Trainer with the report's mathematics: loss, optimizer, schedule, guard, curve, checkpoints.

The Trainer (with accelerate) keeps what is the ecosystem's: devices, autocast, gradient accumulation, data
loading over processes, torch.compile. FSDP2 is put on the model before (model.py), which the Trainer then
leaves as it is. What is overridden here: the loss, the optimizer, clipping (a step whose gradient norm is 100
or more is dropped, as in AXLearn), and what happens after a step.

No random number is drawn but by a loss of one's own, and for that the generator is seeded by the step. So a
step depends on its number, the weights and the optimizer's state alone, and a run that was killed and resumed
ends with the same bits as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainingArguments

from pomona.errors import PomonaError
from pomona.pretraining.curve import Point
from pomona.pretraining.recipe import OptimizerSettings, StageSettings
from pomona.pretraining.schedule import schedule
from pomona.pretraining.training.checkpoint import Progress
from pomona.pretraining.training.loss import Batch, LossFunction, cross_entropy
from pomona.pretraining.training.model import named_tensors, reshard
from pomona.pretraining.training.muparam import parameter_groups
from pomona.pretraining.training.optimizer import RMSPropMomentum

MAX_DROPPED_IN_A_ROW = 50


class Windows(Protocol):
    """Token sequences by number, each int64 [S + 1] (PackedMixture is one)."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> NDArray[np.int64]: ...


@dataclass(frozen=True)
class Callbacks:
    """What the trainer tells: a step that was made; that a checkpoint is due."""

    on_point: Callable[[Point], None]
    on_save: Callable[[Progress], None]


class StageData(Dataset[dict[str, torch.Tensor]]):  # type: ignore[misc]
    """Windows from number `first` on, as the Trainer's data set."""

    def __init__(self, windows: Windows, first: int, end: int) -> None:
        self.windows, self.first, self.end = windows, first, end

    def __len__(self) -> int:
        return self.end - self.first

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        number = self.first + index
        return {"ids": torch.as_tensor(self.windows[number]), "index": torch.tensor(number)}


class StageTrainer(Trainer):  # type: ignore[misc]
    """Trains `model` in place through the steps of one stage that are left."""

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        *,
        stage: StageSettings,
        settings: OptimizerSettings,
        windows: Windows,
        validation: Windows,
        progress: Progress,
        loss: LossFunction,
        width: int,
        flop_per_token: float,
        peak_flops: float | None,
        callbacks: Callbacks,
        seed: int,
    ) -> None:
        """windows: at least steps * batch of the stage. peak_flops: of all devices together, or None."""
        self.stage, self.settings, self.validation = stage, settings, validation
        self.progress, self.loss, self.width, self.seed = progress, loss, width, seed
        self.flop_per_token, self.peak_flops, self.callbacks = flop_per_token, peak_flops, callbacks
        self._sums = torch.zeros(2)  # of next-token loss and z over the passes of a step
        self._norm, self._drop = 0.0, False
        self._started = time.perf_counter()
        if isinstance(loss, torch.nn.Module):
            loss.to(args.device)
        data = StageData(windows, progress.step * stage.batch, stage.steps * stage.batch)
        super().__init__(model=model, args=args, train_dataset=data, data_collator=_collate)
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = False  # a mean per pass: the Trainer divides it by the passes of a step

    # --- what is trained, and how --------------------------------------------------------------------------

    @property
    def loss_tensors(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that the loss brings along, by name."""
        return named_tensors(self.loss) if isinstance(self.loss, torch.nn.Module) else {}

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        self.optimizer: torch.optim.Optimizer | None
        if self.optimizer is None:
            o, s = self.settings, self.stage
            named, extra = named_tensors(self.model), list(self.loss_tensors.values())
            if o.kind == "adamw":
                groups = parameter_groups(named.items(), self.width, o.muparam_base_width, lr=s.peak_lr)
                groups += [{"params": extra, "weight_decay": 0.0}] if extra else []
                # torch multiplies the decay by the learning rate; the recipe's is per step, as the report's.
                for group in groups:
                    group.setdefault("weight_decay", s.weight_decay / group.get("lr", s.peak_lr))
                self.optimizer = torch.optim.AdamW(groups, lr=s.peak_lr, betas=o.betas, foreach=False)
            else:
                groups = parameter_groups(named.items(), self.width, o.muparam_base_width)
                groups += [{"params": extra, "weight_decay": 0.0}] if extra else []
                self.optimizer = RMSPropMomentum(
                    groups, lr=s.peak_lr, betas=o.betas, clip=o.block_clip, weight_decay=s.weight_decay
                )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        s, done = self.stage, self.progress.step

        def share(step: int) -> float:
            return schedule(done + step, steps=s.steps, warm_up=s.warm_up, floor=s.floor)

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, share)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        ids = inputs["ids"]
        with self.accelerator.autocast():
            found = self.loss(model, Batch(ids[:, :-1], ids[:, 1:], inputs["index"]))
        z = found.parts.get("z", torch.tensor(math.nan))
        self._sums += torch.stack([found.next_token.detach().float().cpu(), z.detach().float().cpu()])
        return found.total

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        torch.manual_seed(self.seed * 1_000_003 + self.progress.step)
        return super().training_step(model, inputs, num_items_in_batch)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # counted by flop_per_token

    @contextmanager
    def _defer_fsdp_gradient_reduction(self) -> Iterator[None]:
        """Between the passes of a step: gradients are summed over processes once, after the last pass."""
        self.model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.model.set_requires_gradient_sync(True)

    # --- clipping and dropping -----------------------------------------------------------------------------

    def _clip_grad_norm(self, model: Any) -> float:
        """Clips to the global norm, or drops the step: the optimizer skips what has no gradient."""
        trained = [*named_tensors(self.model).values(), *self.loss_tensors.values()]
        grads = [parameter.grad for parameter in trained if parameter.grad is not None]
        self._norm = _global_norm(grads)
        self._drop = not self._norm < self.settings.drop_norm  # so that NaN is dropped as well
        if self._drop:
            for parameter in trained:
                parameter.grad = None
        elif self._norm > self.settings.global_clip:
            for grad in grads:
                grad.mul_(self.settings.global_clip / self._norm)
        return self._norm

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> float:
        return self._norm

    # --- after a step --------------------------------------------------------------------------------------

    def _maybe_log_save_evaluate(self, *arguments: Any, learning_rate: Any = None, **others: Any) -> None:
        """Called by the Trainer after each step, and once more at the end of the data."""
        if self.progress.step == self.stage.steps:
            return
        for parameter in self.loss_tensors.values():
            parameter.grad = None  # the Trainer clears the model's
        seconds = time.perf_counter() - self._started
        p, s = self.progress, self.stage
        in_a_row = p.dropped_in_a_row + 1 if self._drop else 0
        self.progress = Progress(p.step + 1, p.tokens + s.tokens_per_step, p.dropped + self._drop, in_a_row)
        means = self._mean_over_processes(self._sums / self.args.gradient_accumulation_steps)
        self._sums = torch.zeros(2)
        step, last = self.progress.step, self.progress.step == s.steps
        if in_a_row > MAX_DROPPED_IN_A_ROW:
            raise PomonaError(
                f"step {step}: the gradient norm ({self._norm:.3g}) was at or above "
                f"{self.settings.drop_norm:g} for {in_a_row} steps in a row; lower peak_lr, look at the data"
            )
        validation = self.validate() if step % s.evaluate_every == 0 or last else None
        speed = s.tokens_per_step / seconds
        self.callbacks.on_point(
            Point(
                step=step,
                tokens=self.progress.tokens,
                loss=means[0],
                z=None if math.isnan(means[1]) else means[1],
                gradient_norm=self._norm,
                lr=s.peak_lr * schedule(p.step, steps=s.steps, warm_up=s.warm_up, floor=s.floor),
                dropped=int(self._drop),
                validation_loss=validation,
                tokens_per_second=speed,
                utilisation=self.flop_per_token * speed / self.peak_flops if self.peak_flops else None,
                seconds=seconds,
            )
        )
        if step % s.save_every == 0 or last:
            self.callbacks.on_save(self.progress)
        self._started = time.perf_counter()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The curve is the log."""

    def validate(self) -> float:
        """Mean next-token cross-entropy of the validation windows, nats per token."""
        self.model.eval()
        with torch.no_grad():
            total = self._validation_sums()
        self.model.train()
        reshard(self.model)
        if self.args.world_size > 1:
            total = self.accelerator.reduce(total.to(self.args.device), "sum").cpu()
        return float(total[0] / total[1])

    def _validation_sums(self) -> torch.Tensor:
        """Of the losses, and how many there are, in this process."""
        world, rank = self.args.world_size, self.args.process_index
        count, size = len(self.validation), self.args.per_device_train_batch_size
        total = torch.zeros(2, dtype=torch.float64)
        # All processes go through equally many passes, because a sharded forward is a common one.
        for first in range(0, count, size * world):
            mine = range(first + rank * size, first + (rank + 1) * size)
            rows = [torch.as_tensor(self.validation[min(number, count - 1)]) for number in mine]
            ids = torch.stack(rows).to(self.args.device)
            with self.accelerator.autocast():
                logits = self.model_wrapped(input_ids=ids[:, :-1], use_cache=False).logits
            for number, row, labels in zip(mine, logits, ids[:, 1:], strict=True):
                if number < count:
                    total += torch.tensor([float(cross_entropy(row, labels)[0]), 1.0], dtype=torch.float64)
        return total

    def _mean_over_processes(self, values: torch.Tensor) -> list[float]:
        if self.args.world_size > 1:
            values = self.accelerator.reduce(values.to(self.args.device), "mean").cpu()
        return [float(value) for value in values]


def _global_norm(grads: Sequence[torch.Tensor]) -> float:
    """The 2-norm of all together, over all shards."""
    norms = torch.nn.utils.get_total_norm([grad for grad in grads if isinstance(grad, DTensor)])
    sharded = norms.full_tensor() if isinstance(norms, DTensor) else norms
    plain = torch.nn.utils.get_total_norm([grad for grad in grads if not isinstance(grad, DTensor)])
    return math.hypot(float(sharded), float(plain))


def _collate(rows: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {key: torch.stack([row[key] for row in rows]) for key in ("ids", "index")}
