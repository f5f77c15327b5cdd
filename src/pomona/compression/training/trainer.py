"""Recovery: distil the 16-bit model into adapters, and into tables, on the palettised base (loop.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pomona.compression.training.loop import CHECKPOINT, Loop, Moment, Sums
from pomona.compression.training.loss import Agreement, Head, agreement, kl_gradient
from pomona.compression.training.network import Network
from pomona.compression.training.options import Point, TrainOptions
from pomona.compression.training.parameters import Flat, new_adapters
from pomona.compression.training.tables import Palette, TrainedTables

__all__ = ["CHECKPOINT", "OnPoint", "Task", "Trainer"]

OnPoint = Callable[[Point, float | None], None]  # a point, and the seconds that are left if that is known


@dataclass(frozen=True)
class Task:
    """Windows of token ids, int32 [n, S], and the teacher's states for them, bfloat16 bits [n, S, D]."""

    train: NDArray[np.int32]
    train_states: NDArray[np.uint16]
    held_out: NDArray[np.int32]
    held_out_states: NDArray[np.uint16]
    teacher_head_VD: torch.Tensor


class JudgedByKL:
    """What objectives have in common that follow another model: their points."""

    score_name = "held-out KL"

    def point(self, found: Agreement, moment: Moment) -> Point:
        return Point(
            moment.step,
            moment.tokens,
            moment.seconds,
            moment.since.mean,
            found.mean_kl,
            found.same_top_rate,
            moment.lr,
            moment.since.tokens_per_second,
        )

    def read_point(self, raw: dict[str, Any]) -> Point:
        return Point(**raw)


class Distillation(JudgedByKL):
    """The loop's objective: the KL to the teacher, `batch` windows at a time."""

    def __init__(self, student: Network, task: Task, batch: int) -> None:
        self.student, self.task, self.batch = student, task, batch
        self.head = Head(student.head_VD, task.teacher_head_VD)

    @property
    def windows(self) -> int:
        return len(self.task.train)

    def gradient(self, chosen: list[int]) -> Sums:
        tokens = len(chosen) * int(self.task.train.shape[1])
        total = 0.0
        for start in range(0, len(chosen), self.batch):
            part = sorted(chosen[start : start + self.batch])
            ids = torch.from_numpy(self.task.train[part].astype(np.int64))
            wanted = _states(self.task.train_states[part])
            states, kept = self.student.forward(ids, keep=True)
            kl, grad = kl_gradient(states, wanted, self.head)
            self.student.backward(grad.div_(tokens), kept)
            total += kl
        return Sums(total, tokens, tokens)

    def judge(self) -> Agreement:
        """The held-out windows under the present adapters."""
        found = Agreement()
        for start in range(0, len(self.task.held_out), self.batch):
            part = slice(start, start + self.batch)
            states, _ = self.student.forward(torch.from_numpy(self.task.held_out[part].astype(np.int64)))
            one = agreement(states, _states(self.task.held_out_states[part]), self.head)
            found.add(one)
        return found

    def identity(self) -> dict[str, Any]:
        return {}


class Trainer(Loop[Point]):
    """Trains the adapters of `student` in place, and its tables where `palettes` are given."""

    options: TrainOptions

    def __init__(
        self,
        student: Network,
        task: Task,
        options: TrainOptions,
        folder: Path,
        palettes: Mapping[str, Palette] | None = None,
        start: Callable[[], None] | None = None,
    ) -> None:
        """start: sets the adapters' first values, after the base alone has been judged."""
        self.task = task
        flat, adapters = new_adapters(student, rank=options.rank, scale=options.scale, seed=options.seed)
        flats = {"adapter": flat}
        self.tables: dict[str, TrainedTables] = {}
        if palettes:
            flats["tables"], self.tables = _tables(palettes)
        for group in student.projections():
            group.adapt(adapters, self.tables)
        rates = {"adapter": options.lr, "tables": options.lr * options.table_lr}
        tokens = options.batch * options.accumulate * int(task.train.shape[1])
        super().__init__(
            student,
            Distillation(student, task, options.batch),
            flats,
            rates,
            options,
            folder,
            every=max(options.evaluate_tokens // tokens, 1),
            start=start,
        )

    @property
    def tokens_per_step(self) -> int:
        return self.windows_per_step * int(self.task.train.shape[1])


def _tables(palettes: Mapping[str, Palette]) -> tuple[Flat, dict[str, TrainedTables]]:
    flat = Flat(
        {f"{name}.change": tuple(p.tables_GTE.shape) for name, p in palettes.items()}
        | {f"{name}.stretch": tuple(p.row_scales_N.shape) for name, p in palettes.items()}
    )
    made = {}
    for name, palette in palettes.items():
        change, stretch, change_grad, stretch_grad = flat.views(f"{name}.change", f"{name}.stretch")
        made[name] = TrainedTables(palette, (change, stretch), (change_grad, stretch_grad))
    return flat, made


def _states(bits: NDArray[np.uint16]) -> torch.Tensor:
    """[n, S, D] bits -> [n S, D] bfloat16."""
    return torch.from_numpy(np.array(bits)).view(torch.bfloat16).reshape(-1, bits.shape[-1])
