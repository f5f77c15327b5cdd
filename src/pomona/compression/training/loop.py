"""The loop that recovery and task adapters share: steps, learning rate, evaluations, checkpoints.

What is learnt is the objective's business (recovery: trainer.py; task adapters: adapters/training/). The loop
hands it the numbers of a step's windows and updates the parameters by the gradients that it has filled.

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
from typing import Any, Generic, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pomona.compression.training.network import Network
from pomona.compression.training.options import LoopOptions, Outcome, P, P_co
from pomona.compression.training.parameters import Flat
from pomona.errors import PomonaError
from pomona.models.model_directory import Progress
from pomona.models.safetensors_file import SafetensorsFile, SafetensorsWriter, TensorSpec

CHECKPOINT = "checkpoint.safetensors"
CURVE = "curve.jsonl"
SAVE_SECONDS = 120.0
_BETAS = (0.9, 0.95)


@dataclass
class Sums:
    """loss: a sum over `counted` tokens; read: tokens that went through the network."""

    loss: float = 0.0
    counted: int = 0
    read: int = 0
    seconds: float = 0.0

    @property
    def mean(self) -> float | None:
        """The loss per token, if there was any."""
        return self.loss / self.counted if self.counted else None

    @property
    def tokens_per_second(self) -> float | None:
        return round(self.read / self.seconds, 1) if self.seconds else None


@dataclass(frozen=True)
class Moment:
    """Where a run stands at an evaluation; `since`: of the steps since the one before."""

    step: int
    tokens: int  # read so far
    seconds: float
    since: Sums
    lr: float


@dataclass(frozen=True)
class Step:
    """One step that was made: loss per counted token, and the norm of its gradient before clipping."""

    step: int
    total: int
    loss: float
    lr: float
    norm: float
    tokens: int  # read in it
    seconds: float  # that it took
    seconds_left: float | None


class Objective(Protocol[P_co]):
    """What is learnt. `score_name` is the name of a point's score, for messages."""

    score_name: str

    @property
    def windows(self) -> int:
        """How many there are to train on."""

    def gradient(self, chosen: list[int]) -> Sums:
        """Adds the gradients of the mean loss over the tokens of these windows to the parameters'."""

    def judge(self) -> Any:
        """What `point` needs to know about the held-out windows under the present parameters."""

    def point(self, found: Any, moment: Moment) -> P_co: ...

    def read_point(self, raw: dict[str, Any]) -> P_co:
        """The point of which `raw` is the JSON."""

    def identity(self) -> dict[str, Any]:
        """What must be equal, besides the options, for a checkpoint to fit."""


OnStep = Callable[[Step], None]


class Loop(Generic[P]):
    """Trains `flats`, which are parameters of `student`, in place."""

    def __init__(
        self,
        student: Network,
        objective: Objective[P],
        flats: Mapping[str, Flat],
        rates: Mapping[str, float],
        options: LoopOptions,
        folder: Path,
        *,
        every: int,
        start: Callable[[], None] | None = None,
    ) -> None:
        """rates: the highest learning rate of each of the flats. every: steps between two evaluations. start:
        sets the parameters' first values, after the student without them has been judged."""
        self.student, self.objective, self.flats = student, objective, dict(flats)
        self.options, self.folder, self.every = options, folder, every
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
        self.tokens = 0
        self.seconds = 0.0
        self.points: list[P] = []
        self._since = Sums()  # the last evaluation
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))  # of a pass's windows

    @property
    def windows_per_step(self) -> int:
        return self.options.batch * self.options.accumulate

    @property
    def total_steps(self) -> int:
        return max(self.objective.windows * self.options.passes // self.windows_per_step, 1)

    @property
    def best(self) -> P:
        return min(self.points, key=lambda point: point.score)

    def run(
        self,
        *,
        progress: Progress | None = None,
        on_point: Callable[[P, float | None], None] | None = None,
        on_step: OnStep | None = None,
    ) -> Outcome[P]:
        """Trains until the text, the time or the patience is used up; the student has the best parameters
        then. on_point: gets a point, and the seconds that are left if that is known.

        Raises PomonaError when the loss is no number. An interruption writes a checkpoint and passes on.
        """
        whole = True  # parameters and optimizer belong to one step
        try:
            if not self.points or (self.step % self.every == 0 and self.points[-1].step < self.step):
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
                found = self._gradient()
                whole = False
                norm = self._update()
                whole = True
                self._add(found, time.perf_counter() - started)
                if progress is not None:
                    progress("train", self.step, self.total_steps)
                if on_step is not None:
                    on_step(self._made(found, norm, time.perf_counter() - started))
                stopped = self._why_stop()
                if self.step % self.every == 0 or stopped is not None:
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
        count = self.objective.windows
        first = step * self.windows_per_step
        found: list[int] = []
        for number in range(first, first + self.windows_per_step):
            whole, at = divmod(number, count)
            if self._order[0] != whole:
                self._order = (whole, np.random.default_rng([self.options.seed, whole]).permutation(count))
            found.append(int(self._order[1][at]))
        return found

    def _gradient(self) -> Sums:
        """Fills the gradients of the next step."""
        for flat in self.flats.values():
            flat.grads.zero_()
        found = self.objective.gradient(self._windows(self.step))
        if not math.isfinite(found.loss):
            raise PomonaError(
                f"step {self.step + 1}: the loss is no number; lower the learning rate (--lr) and resume"
            )
        return found

    def _update(self) -> float:
        """Makes the step; gives the norm of the gradient."""
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
        return norm

    def _add(self, found: Sums, seconds: float) -> None:
        self.seconds += seconds
        self.tokens += found.read
        self._since.seconds += seconds
        self._since.loss += found.loss
        self._since.counted += found.counted
        self._since.read += found.read

    def _made(self, found: Sums, norm: float, seconds: float) -> Step:
        return Step(
            self.step,
            self.total_steps,
            found.loss / max(found.counted, 1),
            self.options.lr * self._lr_factor(),
            norm,
            found.read,
            seconds,
            self._seconds_left(),
        )

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
        best = min(range(len(self.points)), key=lambda i: self.points[i].score)
        return "early" if len(self.points) - 1 - best >= self.options.patience else None

    def _evaluate(self, on_point: Callable[[P, float | None], None] | None) -> None:
        started = time.perf_counter()
        found = self.objective.judge()
        self.seconds += time.perf_counter() - started
        lr = self.options.lr * self._lr_factor()
        point = self.objective.point(
            found, Moment(self.step, self.tokens, round(self.seconds, 2), self._since, lr)
        )
        self._since = Sums()
        if not math.isfinite(point.score):
            raise PomonaError(
                f"step {self.step}: the {self.objective.score_name} is no number; "
                "lower the learning rate (--lr)"
            )
        if not self.points or point.score < self.best.score:
            for flat in self.flats.values():
                flat.best.copy_(flat.values)
        self.points.append(point)
        mode = "w" if len(self.points) == 1 else "a"
        with (self.folder / CURVE).open(mode, encoding="utf-8") as file:
            file.write(json.dumps(_plain(point)) + "\n")
        if on_point is not None:
            on_point(point, self._seconds_left())

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
            "tokens": self.tokens,
            "seconds": self.seconds,
            "since": asdict(self._since),
            "points": [_plain(point) for point in self.points],
            "options": self._identity(),
        }
        path = self.folder / CHECKPOINT
        new = path.with_suffix(".new")
        specs = [TensorSpec(name, "F32", tuple(vector.shape)) for name, vector in vectors.items()]
        with SafetensorsWriter(new, specs, {"run": json.dumps(meta)}) as writer:
            for name, vector in vectors.items():
                writer.write(name, vector.detach().numpy())
        os.replace(new, path)

    def resume(self) -> None:
        """Goes on from the folder's checkpoint. PomonaError if it belongs to a run with other options."""
        path = self.folder / CHECKPOINT
        with SafetensorsFile(path) as file:
            meta = json.loads(file.metadata.get("run", "{}"))
            if meta.get("options") != self._identity():
                raise PomonaError(f"{path}: belongs to a run with other options; give the same, or --restart")
            vectors = {name: torch.from_numpy(file.array(name).copy()) for name in file.tensors}
        self.step, self.tokens, self.seconds = meta["step"], meta["tokens"], meta["seconds"]
        self._since = Sums(**meta["since"])
        self.points = [self.objective.read_point(point) for point in meta["points"]]
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
        lines = "".join(json.dumps(_plain(point)) + "\n" for point in self.points)
        (self.folder / CURVE).write_text(lines, encoding="utf-8")

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to fit. A longer time budget may be given to a resumed run."""
        options = asdict(self.options)
        del options["minutes"]
        return {
            **options,
            "parameters": [len(flat.values) for flat in self.flats.values()],
            "windows": self.objective.windows,
            **self.objective.identity(),
        }


def _plain(point: Any) -> dict[str, Any]:
    """The point, a dataclass, as JSON has it."""
    found: dict[str, Any] = asdict(point)
    return found
