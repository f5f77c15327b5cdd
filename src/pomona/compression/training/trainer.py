"""The loop of recovery: distil the 16-bit model into adapters on the palettised base.

Everything that a step depends on is in its number: the order of the windows is drawn from (seed, pass), there
is no dropout, and the learning rate follows the step, or the clock where a time budget is set. So a run that
was interrupted and resumed ends, without a time budget, with the same bits as one that was not.

A run is a folder: `checkpoint.safetensors` (parameters, optimizer, best parameters), written anew every few
minutes and when the run is interrupted, and `curve.jsonl`, one line per evaluation.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pomona.compression.training.loss import Agreement, Head, agreement, kl_gradient
from pomona.compression.training.network import LowRank, Network
from pomona.compression.training.options import Outcome, Point, TrainOptions
from pomona.compression.training.tables import Palette, TrainedTables
from pomona.errors import PomonaError
from pomona.models.model_directory import Progress
from pomona.models.safetensors_file import SafetensorsFile, SafetensorsWriter, TensorSpec

CHECKPOINT = "checkpoint.safetensors"
CURVE = "curve.jsonl"
SAVE_SECONDS = 120.0
_BETAS = (0.9, 0.95)
OnPoint = Callable[[Point, float | None], None]  # a point, and the seconds that are left if that is known


@dataclass(frozen=True)
class Task:
    """Windows of token ids, int32 [n, S], and the teacher's states for them, bfloat16 bits [n, S, D]."""

    train: NDArray[np.int32]
    train_states: NDArray[np.uint16]
    held_out: NDArray[np.int32]
    held_out_states: NDArray[np.uint16]
    teacher_head_VD: torch.Tensor


class Flat:
    """Named parameters, zero at first, and their gradients, each a part of one float32 vector."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        total = sum(math.prod(shape) for shape in shapes.values())
        self.values, self.grads, self.best = torch.zeros(total), torch.zeros(total), torch.zeros(total)
        self._places: dict[str, tuple[slice, tuple[int, ...]]] = {}
        start = 0
        for name, shape in shapes.items():
            self._places[name] = (slice(start, start + math.prod(shape)), shape)
            start += math.prod(shape)

    def value(self, name: str) -> torch.Tensor:
        return self._view(name, self.values)

    def views(self, *names: str) -> list[torch.Tensor]:
        """The values of these parameters, then their gradients."""
        return [self._view(n, self.values) for n in names] + [self._view(n, self.grads) for n in names]

    def _view(self, name: str, vector: torch.Tensor) -> torch.Tensor:
        place, shape = self._places[name]
        return vector[place].view(shape)


class Trainer:
    """Trains the adapters of `student` in place, and its tables where `palettes` are given."""

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
        self.student, self.task, self.options, self.folder = student, task, options, folder
        self.head = Head(student.head_VD, task.teacher_head_VD)
        shapes = student.config.linear_shapes()
        adapter = Flat(
            {f"{name}.a": (options.rank, columns) for name, (_, columns) in shapes.items()}
            | {f"{name}.b": (rows, options.rank) for name, (rows, _) in shapes.items()}
        )
        self.flats = {"adapter": adapter}
        generator = torch.Generator().manual_seed(options.seed)
        for name, (_, columns) in shapes.items():  # as PEFT: A uniform within 1 / sqrt(K), B zero
            bound = 1 / math.sqrt(columns)
            adapter.value(f"{name}.a").uniform_(-bound, bound, generator=generator)
        adapters = {}
        for name in shapes:
            a_RK, b_NR, a_grad, b_grad = adapter.views(f"{name}.a", f"{name}.b")
            adapters[name] = LowRank(a_RK, b_NR, a_grad, b_grad, options.scale)
        self.tables = self._tables(palettes or {})
        for group in student.projections():
            group.adapt(adapters, self.tables)
        rates = {"adapter": options.lr, "tables": options.lr * options.table_lr}
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [flat.values], "lr": rates[name], "top": rates[name]}
                for name, flat in self.flats.items()
            ],
            betas=_BETAS,
            weight_decay=0.0,
        )
        self._start = start
        self.step = 0
        self.seconds = 0.0
        self.points: list[Point] = []
        self._kl_sum, self._kl_tokens, self._kl_seconds = 0.0, 0, 0.0  # since the last evaluation
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))  # of a pass's windows

    def _tables(self, palettes: Mapping[str, Palette]) -> dict[str, TrainedTables]:
        if not palettes:
            return {}
        flat = Flat(
            {f"{name}.change": tuple(p.tables_GTE.shape) for name, p in palettes.items()}
            | {f"{name}.stretch": tuple(p.row_scales_N.shape) for name, p in palettes.items()}
        )
        self.flats["tables"] = flat
        made = {}
        for name, palette in palettes.items():
            change, stretch, change_grad, stretch_grad = flat.views(f"{name}.change", f"{name}.stretch")
            made[name] = TrainedTables(palette, (change, stretch), (change_grad, stretch_grad))
        return made

    @property
    def windows_per_step(self) -> int:
        return self.options.batch * self.options.accumulate

    @property
    def tokens_per_step(self) -> int:
        return self.windows_per_step * int(self.task.train.shape[1])

    @property
    def total_steps(self) -> int:
        return max(len(self.task.train) * self.options.passes // self.windows_per_step, 1)

    @property
    def best(self) -> Point:
        return min(self.points, key=lambda point: point.held_out_kl)

    def run(self, *, progress: Progress | None = None, on_point: OnPoint | None = None) -> Outcome:
        """Trains until the text, the time or the patience is used up; the student has the best adapters then.

        Raises PomonaError when the loss is no number. An interruption writes a checkpoint and passes on.
        """
        every = max(self.options.evaluate_tokens // self.tokens_per_step, 1)
        whole = True  # parameters and optimizer belong to one step
        try:
            if not self.points or (self.step % every == 0 and self.points[-1].step < self.step):
                self._evaluate(on_point)
            if self._start is not None and len(self.points) == 1 and self.step == 0:
                self._start()
                self.student.refresh()
                self._evaluate(on_point)
            self._start = None
            saved = time.perf_counter()
            stopped = self._why_stop()
            while stopped is None:
                started = time.perf_counter()
                kl = self._gradient()
                whole = False
                self._update()
                whole = True
                self.seconds += time.perf_counter() - started
                self._kl_seconds += time.perf_counter() - started
                self._kl_sum += kl
                self._kl_tokens += self.tokens_per_step
                if progress is not None:
                    progress("train", self.step, self.total_steps)
                stopped = self._why_stop()
                if self.step % every == 0 or stopped is not None:
                    self._evaluate(on_point)
                    stopped = stopped or self._why_stop()
                if stopped is not None or time.perf_counter() - saved > SAVE_SECONDS:
                    self.save()
                    saved = time.perf_counter()
        except KeyboardInterrupt:
            if whole:
                self.save()
            raise
        for flat in self.flats.values():
            flat.values.copy_(flat.best)
        self.student.refresh()
        return Outcome(tuple(self.points), self.best, stopped)

    # --- one step -----------------------------------------------------------------------------------------

    def _windows(self, step: int) -> list[int]:
        """The numbers of a step's windows: the passes' permutations one after the other."""
        count = len(self.task.train)
        first = step * self.windows_per_step
        found: list[int] = []
        for number in range(first, first + self.windows_per_step):
            whole, at = divmod(number, count)
            if self._order[0] != whole:
                self._order = (whole, np.random.default_rng([self.options.seed, whole]).permutation(count))
            found.append(int(self._order[1][at]))
        return found

    def _gradient(self) -> float:
        """Fills the gradients of the next step; gives the sum of its tokens' KL."""
        for flat in self.flats.values():
            flat.grads.zero_()
        chosen = self._windows(self.step)
        total = 0.0
        for start in range(0, len(chosen), self.options.batch):
            part = sorted(chosen[start : start + self.options.batch])
            ids = torch.from_numpy(self.task.train[part].astype(np.int64))
            wanted = _states(self.task.train_states[part])
            states, kept = self.student.forward(ids, keep=True)
            kl, grad = kl_gradient(states, wanted, self.head)
            if not math.isfinite(kl):
                raise PomonaError(
                    f"step {self.step + 1}: the loss is no number; lower the learning rate (--lr) and resume"
                )
            self.student.backward(grad.div_(self.tokens_per_step), kept)
            total += kl
        return total

    def _update(self) -> None:
        flats = list(self.flats.values())
        norm = math.hypot(*(float(torch.linalg.vector_norm(flat.grads)) for flat in flats))
        if not math.isfinite(norm):
            raise PomonaError(
                f"step {self.step + 1}: the gradient is no number; lower the learning rate (--lr)"
            )
        self.step += 1
        factor = self._lr_factor()
        for flat, group in zip(flats, self.optimizer.param_groups, strict=True):
            if norm > self.options.clip:
                flat.grads.mul_(self.options.clip / norm)
            flat.values.grad = flat.grads
            group["lr"] = group["top"] * factor
        self.optimizer.step()
        self.student.refresh()

    def _fraction(self) -> float:
        """How much of the run is over."""
        steps = self.step / self.total_steps
        if self.options.minutes is None:
            return steps
        return max(steps, self.seconds / (60 * self.options.minutes))

    def _lr_factor(self) -> float:
        """Of the learning rate: warm-up, then half a cosine."""
        o = self.options
        fraction = min(self._fraction(), 1.0)
        if fraction < o.warm_up:
            return fraction / o.warm_up
        turn = (fraction - o.warm_up) / (1 - o.warm_up)
        return o.last_lr + (1 - o.last_lr) * 0.5 * (1 + math.cos(math.pi * turn))

    def _seconds_left(self) -> float | None:
        fraction = self._fraction()
        return self.seconds * (1 / fraction - 1) if fraction > 0 else None

    def _why_stop(self) -> str | None:
        if self.step >= self.total_steps:
            return "done"
        if self._fraction() >= 1:
            return "time"
        best = min(range(len(self.points)), key=lambda i: self.points[i].held_out_kl)
        return "early" if len(self.points) - 1 - best >= self.options.patience else None

    def _evaluate(self, on_point: OnPoint | None) -> None:
        started = time.perf_counter()
        found = self.judge()
        self.seconds += time.perf_counter() - started
        point = Point(
            self.step,
            self.step * self.tokens_per_step,
            round(self.seconds, 2),
            self._kl_sum / self._kl_tokens if self._kl_tokens else None,
            found.mean_kl,
            found.same_top_rate,
            self.options.lr * self._lr_factor(),
            round(self._kl_tokens / self._kl_seconds, 1) if self._kl_seconds else None,
        )
        self._kl_sum, self._kl_tokens, self._kl_seconds = 0.0, 0, 0.0
        if not math.isfinite(found.mean_kl):
            raise PomonaError(
                f"step {self.step}: the held-out KL is no number; lower the learning rate (--lr)"
            )
        if not self.points or point.held_out_kl < self.best.held_out_kl:
            for flat in self.flats.values():
                flat.best.copy_(flat.values)
        self.points.append(point)
        with (self.folder / CURVE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(point)) + "\n")
        if on_point is not None:
            on_point(point, self._seconds_left())

    def judge(self) -> Agreement:
        """The held-out windows under the present adapters."""
        found = Agreement()
        for start in range(0, len(self.task.held_out), self.options.batch):
            part = slice(start, start + self.options.batch)
            states, _ = self.student.forward(torch.from_numpy(self.task.held_out[part].astype(np.int64)))
            one = agreement(states, _states(self.task.held_out_states[part]), self.head)
            found.tokens += one.tokens
            found.kl += one.kl
            found.same_top += one.same_top
        return found

    # --- checkpoints --------------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes the checkpoint; the old one stays until the new one is whole."""
        vectors = {}
        for name, flat in self.flats.items():
            state = self.optimizer.state.get(flat.values, {})
            zeros = torch.zeros_like(flat.values)
            vectors[f"{name}.values"] = flat.values
            vectors[f"{name}.mean"] = state.get("exp_avg", zeros)
            vectors[f"{name}.square"] = state.get("exp_avg_sq", zeros)
            vectors[f"{name}.best"] = flat.best
        meta = {
            "step": self.step,
            "seconds": self.seconds,
            "kl": [self._kl_sum, self._kl_tokens, self._kl_seconds],
            "points": [asdict(point) for point in self.points],
            "options": self._identity(),
        }
        path = self.folder / CHECKPOINT
        new = path.with_suffix(".new")
        specs = [TensorSpec(name, "F32", tuple(vector.shape)) for name, vector in vectors.items()]
        with SafetensorsWriter(new, specs, {"recovery": json.dumps(meta)}) as writer:
            for name, vector in vectors.items():
                writer.write(name, vector.detach().numpy())
        os.replace(new, path)

    def resume(self) -> None:
        """Goes on from the folder's checkpoint. PomonaError if it belongs to a run with other options."""
        path = self.folder / CHECKPOINT
        with SafetensorsFile(path) as file:
            meta = json.loads(file.metadata.get("recovery", "{}"))
            if meta.get("options") != self._identity():
                raise PomonaError(f"{path}: belongs to a run with other options; give the same, or --restart")
            vectors = {name: torch.from_numpy(file.array(name).copy()) for name in file.tensors}
        self.step, self.seconds = meta["step"], meta["seconds"]
        self._kl_sum, self._kl_tokens, self._kl_seconds = meta["kl"]
        self.points = [Point(**point) for point in meta["points"]]
        for name, flat in self.flats.items():
            flat.values.copy_(vectors[f"{name}.values"])
            flat.best.copy_(vectors[f"{name}.best"])
            if self.step:
                self.optimizer.state[flat.values] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": vectors[f"{name}.mean"],
                    "exp_avg_sq": vectors[f"{name}.square"],
                }
        self.student.refresh()
        lines = "".join(json.dumps(asdict(point)) + "\n" for point in self.points)
        (self.folder / CURVE).write_text(lines, encoding="utf-8")

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to fit. A longer time budget may be given to a resumed run."""
        options = asdict(self.options)
        del options["minutes"]
        return {
            **options,
            "parameters": [len(flat.values) for flat in self.flats.values()],
            "windows": len(self.task.train),
        }


def _states(bits: NDArray[np.uint16]) -> torch.Tensor:
    """[n, S, D] bits -> [n S, D] bfloat16."""
    return torch.from_numpy(np.array(bits)).view(torch.bfloat16).reshape(-1, bits.shape[-1])
