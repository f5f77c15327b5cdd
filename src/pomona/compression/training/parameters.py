"""What is trained, as one flat vector, so that a step of the optimizer is one operation.

Shape letters: N outputs, K inputs, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from pomona.compression.training.network import LowRank, Network


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


def new_adapters(student: Network, *, rank: int, scale: float, seed: int) -> tuple[Flat, dict[str, LowRank]]:
    """An adapter for every projection that does nothing yet: as PEFT's, A is uniform within 1 / sqrt(K) and B
    is zero. The caller hands them to the projections."""
    shapes = student.config.linear_shapes()
    flat = Flat(
        {f"{name}.a": (rank, columns) for name, (_, columns) in shapes.items()}
        | {f"{name}.b": (rows, rank) for name, (rows, _) in shapes.items()}
    )
    generator = torch.Generator().manual_seed(seed)
    adapters = {}
    for name, (_, columns) in shapes.items():
        bound = 1 / math.sqrt(columns)
        flat.value(f"{name}.a").uniform_(-bound, bound, generator=generator)
        a_RK, b_NR, a_grad, b_grad = flat.views(f"{name}.a", f"{name}.b")
        adapters[name] = LowRank(a_RK, b_NR, a_grad, b_grad, scale)
    return flat, adapters
