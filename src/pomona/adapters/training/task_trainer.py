"""Task adapters: learn the answers of rows, by the loop that recovery uses too.

Shape letters: T tokens of a pass, C of them that come before a learnt one, D hidden, N outputs, K inputs, R
rank.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pomona.adapters.options import EVALUATIONS, PASS_TOKENS, AdaptPoint
from pomona.adapters.packing import Example, Split, passes
from pomona.adapters.training.loss import cross_entropy, cross_entropy_gradient
from pomona.compression.training.loop import Loop, Moment, Sums
from pomona.compression.training.network import Network
from pomona.compression.training.options import LoopOptions
from pomona.compression.training.parameters import new_adapters
from pomona.runtime.adapter_writer import Pair


@dataclass
class Judged:
    """Sums over the held-out rows."""

    loss: float = 0.0
    answers: int = 0
    right: int = 0


@dataclass(frozen=True)
class Batch:
    """Rows one after the other. places [C]: whose state foretells a learnt token; wanted [C]: that token."""

    ids: Tensor  # [1, T]
    lengths: tuple[int, ...]
    places: Tensor
    wanted: Tensor

    @classmethod
    def of(cls, rows: Sequence[Example]) -> Batch:
        ids = np.concatenate([row.ids[:-1] for row in rows])
        learnt = np.concatenate([row.learnt[1:] for row in rows])
        following = np.concatenate([row.ids[1:] for row in rows])
        return cls(
            torch.from_numpy(ids.astype(np.int64))[None],
            tuple(row.tokens for row in rows),
            torch.from_numpy(np.flatnonzero(learnt)),
            torch.from_numpy(following[learnt].astype(np.int64)),
        )


class Answers:
    """The loop's objective: the cross-entropy of the answers. A window of the loop is a row."""

    score_name = "validation loss"

    def __init__(
        self, student: Network, rows: Split, *, pass_tokens: int = PASS_TOKENS, data: str = ""
    ) -> None:
        """data: what rows they are; a run is not resumed with others."""
        self.student, self.rows, self.pass_tokens, self.data = student, rows, pass_tokens, data

    @property
    def windows(self) -> int:
        return len(self.rows.train)

    def gradient(self, chosen: list[int]) -> Sums:
        rows = [self.rows.train[number] for number in chosen]
        answers = sum(row.answers for row in rows)
        found = Sums(counted=answers)
        for batch in self._batches(rows):
            found.loss += self.one_pass(batch, answers)
            found.read += batch.ids.shape[1]
        return found

    def one_pass(self, batch: Batch, answers: int) -> float:
        """Adds the gradients of the sum of the loss over `answers`; gives the sum."""
        states_TD, kept = self.student.forward(batch.ids, keep=True, lengths=batch.lengths)
        loss, grad_CD = cross_entropy_gradient(states_TD[batch.places], batch.wanted, self.student.head_VD)
        grad_TD = torch.zeros_like(states_TD)
        grad_TD[batch.places] = grad_CD.div_(answers)
        self.student.backward(grad_TD, kept)
        return loss

    def judge(self) -> Judged:
        found = Judged()
        for batch in self._batches(self.rows.held_out):
            states_TD, _ = self.student.forward(batch.ids, lengths=batch.lengths)
            loss, right = cross_entropy(states_TD[batch.places], batch.wanted, self.student.head_VD)
            found.loss += loss
            found.answers += len(batch.wanted)
            found.right += right
        return found

    def point(self, found: Judged, moment: Moment) -> AdaptPoint:
        return AdaptPoint(
            moment.step,
            moment.tokens,
            moment.seconds,
            moment.since.mean,
            found.loss / max(found.answers, 1),
            found.right / max(found.answers, 1),
            moment.lr,
            moment.since.tokens_per_second,
        )

    def read_point(self, raw: dict[str, Any]) -> AdaptPoint:
        return AdaptPoint(**raw)

    def identity(self) -> dict[str, Any]:
        return {"data": self.data, "held_out": len(self.rows.held_out), "pass_tokens": self.pass_tokens}

    def _batches(self, rows: Sequence[Example]) -> list[Batch]:
        groups = passes([row.tokens for row in rows], self.pass_tokens)
        return [Batch.of([rows[number] for number in group]) for group in groups]


class TaskTrainer(Loop[AdaptPoint]):
    """Trains an adapter for `student` in place."""

    def __init__(
        self,
        student: Network,
        objective: Answers,
        options: LoopOptions,
        folder: Path,
        start: Mapping[str, Pair] | None = None,
    ) -> None:
        """start: A and B of every projection to begin with, of the options' rank and scale; without it the
        adapter does nothing at first."""
        flat, adapters = new_adapters(student, rank=options.rank, scale=options.scale, seed=options.seed)
        for name, (a_RK, b_NR) in (start or {}).items():
            flat.value(f"{name}.a").copy_(torch.from_numpy(a_RK))
            flat.value(f"{name}.b").copy_(torch.from_numpy(b_NR))
        for group in student.projections():
            group.adapt(adapters)
        steps = max(objective.windows * options.passes // options.batch, 1)
        super().__init__(
            student,
            objective,
            {"adapter": flat},
            {"adapter": options.lr},
            options,
            folder,
            every=max(steps // EVALUATIONS, 1),
        )
        self.answers = objective

    def pairs(self) -> dict[str, Pair]:
        """A and B of every projection, as they are now."""
        value = self.flats["adapter"].value
        return {
            name: (value(f"{name}.a").numpy(), value(f"{name}.b").numpy())
            for name in self.student.config.linear_shapes()
        }

    def seconds_per_token(self) -> float:
        """Measured on one pass of the first rows, forwards and backwards, which changes nothing: the
        gradients are cleared before every step."""
        rows: list[Example] = []
        for row in self.answers.rows.train:
            if rows and sum(r.tokens for r in rows) + row.tokens > self.answers.pass_tokens:
                break
            rows.append(row)
        batch = Batch.of(rows)
        self.answers.one_pass(Batch.of(rows[:1]), 1)  # the first pass of a process sets things up
        started = time.perf_counter()
        self.answers.one_pass(batch, len(batch.wanted))
        return (time.perf_counter() - started) / int(batch.ids.shape[1])
