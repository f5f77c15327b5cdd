"""Distillation of an old base with its adapter into an adapter of a new base, over the answers alone.

The loop is recovery's; the teacher's states for the answers are computed once and stay in memory (2 bytes per
hidden unit and token of an answer).

Shape letters: T tokens of a pass, A of them that come before a token of an answer, D hidden, N outputs, K
inputs, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pomona.adapters.rebase import Conversation, OnPoint
from pomona.compression.training.loop import Loop, Sums
from pomona.compression.training.loss import Agreement, Head, agreement, kl_gradient
from pomona.compression.training.network import LowRank, Network
from pomona.compression.training.options import LoopOptions, Outcome, Point
from pomona.compression.training.parameters import new_adapters
from pomona.compression.training.trainer import JudgedByKL
from pomona.models.model_directory import Progress
from pomona.runtime.adapter_file import AdapterFile
from pomona.runtime.adapter_pairs import pairs_of
from pomona.runtime.adapter_writer import Pair

PASS_TOKENS = 2048  # of one pass through a network; a longer conversation goes alone
EVALUATIONS = 12  # of a whole run

Low = dict[str, tuple[Tensor, Tensor]]  # module -> A [R, K], B [N, R]


@dataclass(frozen=True)
class Distilled:
    """carried: whether the run began with the old adapter's values."""

    outcome: Outcome[Point]
    pairs: dict[str, Pair]
    carried: bool
    seconds: float


def distil(
    old: Path,
    file: AdapterFile,
    new: Path,
    rows: tuple[Sequence[Conversation], Sequence[Conversation]],
    options: LoopOptions,
    folder: Path,
    *,
    progress: Progress | None = None,
    on_point: OnPoint | None = None,
) -> Distilled:
    """rows: to train on, and held out. PomonaError when values are not finite."""
    teacher = Network.load(old)
    low = values_of(file)
    wear(teacher, low, next(iter(file.scales.values())))
    states = [answer_states(teacher, part, progress) for part in rows]
    carried = teacher.config.linear_shapes() == (student := Network.load(new)).config.linear_shapes()
    objective = Following(student, teacher.head_VD, rows, states)
    del teacher
    flat, adapters = new_adapters(student, rank=options.rank, scale=options.scale, seed=options.seed)
    for group in student.projections():
        group.adapt(adapters)

    def start() -> None:
        for name, (a_RK, b_NR) in low.items():
            flat.value(f"{name}.a").copy_(a_RK)
            flat.value(f"{name}.b").copy_(b_NR)

    steps = max(objective.windows * options.passes // options.batch, 1)
    loop = Loop(
        student,
        objective,
        {"adapter": flat},
        {"adapter": options.lr},
        options,
        folder,
        every=max(steps // EVALUATIONS, 1),
        start=start if carried else None,
    )
    outcome = loop.run(progress=progress, on_point=on_point)
    pairs = {
        name: (flat.value(f"{name}.a").numpy(), flat.value(f"{name}.b").numpy())
        for name in student.config.linear_shapes()
    }
    return Distilled(outcome, pairs, carried, loop.seconds)


def values_of(file: AdapterFile) -> Low:
    """The adapter's values in float32, rounded to bfloat16 as the runtime has them."""

    def rounded(array: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(array).to(torch.bfloat16).float()

    return {module: (rounded(a_RK), rounded(b_NR)) for module, (a_RK, b_NR) in pairs_of(file).items()}


def wear(network: Network, low: Low, scale: float) -> None:
    """Puts an adapter on a network that is only going to be read; other projections stay as they are."""
    rank = len(next(iter(low.values()))[0])
    adapters = {}
    for name, (rows, columns) in network.config.linear_shapes().items():
        a_RK, b_NR = low.get(name, (torch.zeros(rank, columns), torch.zeros(rows, rank)))
        adapters[name] = LowRank(a_RK, b_NR, torch.empty(0), torch.empty(0), scale)
    for group in network.projections():
        group.adapt(adapters)


def answer_states(
    teacher: Network, rows: Sequence[Conversation], progress: Progress | None = None
) -> list[Tensor]:
    """Of each conversation [A, D], in bfloat16: the last states before each token of its answer."""
    found: list[Tensor] = []
    for part in passes(rows, range(len(rows))):
        if progress is not None:
            progress("old pair is read", len(found), len(rows))
        batch = Batch.of([rows[number] for number in part])
        states_TD, _ = teacher.forward(batch.ids, lengths=batch.lengths)
        found += [piece.clone() for piece in states_TD[batch.places].split(batch.answers)]
    return found


@dataclass(frozen=True)
class Batch:
    """Conversations one after the other: ids [1, T], lengths of the rows, places [A], and how many of these
    belong to each row."""

    ids: Tensor
    lengths: list[int]
    places: Tensor
    answers: list[int]

    @classmethod
    def of(cls, rows: Sequence[Conversation]) -> Batch:
        ids = np.concatenate([row.ids[:-1] for row in rows]).astype(np.int64)
        starts = np.cumsum([0, *(row.tokens for row in rows[:-1])])
        places = [np.arange(row.tokens)[row.places] + start for row, start in zip(rows, starts, strict=True)]
        return cls(
            torch.from_numpy(ids)[None],
            [row.tokens for row in rows],
            torch.from_numpy(np.concatenate(places)),
            [len(part) for part in places],
        )


def passes(rows: Sequence[Conversation], numbers: Sequence[int]) -> Iterator[list[int]]:
    """`numbers` in groups of at most PASS_TOKENS tokens, or of one row."""
    group: list[int] = []
    for number in numbers:
        if group and sum(rows[n].tokens for n in group) + rows[number].tokens > PASS_TOKENS:
            yield group
            group = []
        group.append(number)
    if group:
        yield group


class Following(JudgedByKL):
    """The loop's objective: the KL from the old pair over the answers. A window of the loop is one answer."""

    def __init__(
        self,
        student: Network,
        teacher_head_VD: Tensor,
        rows: tuple[Sequence[Conversation], Sequence[Conversation]],
        states: Sequence[list[Tensor]],
    ) -> None:
        self.student = student
        self.head = Head(student.head_VD, teacher_head_VD)
        self.train, self.held_out = rows
        self.train_states, self.held_out_states = states

    @property
    def windows(self) -> int:
        return len(self.train)

    def gradient(self, chosen: list[int]) -> Sums:
        found = Sums(counted=sum(len(self.train_states[number]) for number in chosen))
        for part in passes(self.train, chosen):
            batch = Batch.of([self.train[number] for number in part])
            wanted_AD = torch.cat([self.train_states[number] for number in part])
            states_TD, kept = self.student.forward(batch.ids, keep=True, lengths=batch.lengths)
            kl, grad_AD = kl_gradient(states_TD[batch.places], wanted_AD, self.head)
            grad_TD = torch.zeros_like(states_TD)
            grad_TD[batch.places] = grad_AD.div_(found.counted)
            self.student.backward(grad_TD, kept)
            found.loss += kl
            found.read += batch.ids.shape[1]
        return found

    def judge(self) -> Agreement:
        found = Agreement()
        for part in passes(self.held_out, range(len(self.held_out))):
            batch = Batch.of([self.held_out[number] for number in part])
            wanted_AD = torch.cat([self.held_out_states[number] for number in part])
            states_TD, _ = self.student.forward(batch.ids, lengths=batch.lengths)
            one = agreement(states_TD[batch.places], wanted_AD, self.head)
            found.add(one)
        return found

    def identity(self) -> dict[str, Any]:
        return {"held_out": len(self.held_out)}
