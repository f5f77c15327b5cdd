"""How many bits each module gets, so that the whole meets a budget of bytes or of loss.

Every module has a few choices, each with its bytes and its loss (sensitivity.py: the mean KL of the output
when this module alone takes it). Losses are taken to add up; the report of a compression says how well that
held. What is left is a multiple-choice knapsack. It is solved by dynamic programming over the bytes, in
units of a 65,536th of the room beyond the smallest sizes; sizes are rounded up to units, so that no budget is
exceeded, and what the rounding leaves over is spent by single upgrades.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

UNITS = 1 << 16


@dataclass(frozen=True)
class Choice:
    """What a module costs at some number of bits."""

    bits: int
    nbytes: int  # indices, tables and scales
    loss: float


Choices = Mapping[str, Sequence[Choice]]


def least_bytes(choices: Choices) -> int:
    """The smallest size that any allocation can reach."""
    return sum(min(choice.nbytes for choice in options) for options in choices.values())


def least_loss(choices: Choices) -> float:
    """The smallest loss that any allocation can reach."""
    return sum(min(choice.loss for choice in options) for options in choices.values())


def allocate(choices: Choices, nbytes: int) -> dict[str, Choice]:
    """The choice of every module with the least total loss in at most `nbytes`. ValueError if none fits."""
    if least_bytes(choices) > nbytes:
        raise ValueError(f"{nbytes} bytes: the modules take {least_bytes(choices)} at the least")
    table = _Table(choices, nbytes - least_bytes(choices))
    return _upgraded(choices, table.chosen(UNITS), nbytes)


def allocate_for_loss(choices: Choices, loss: float) -> dict[str, Choice]:
    """The choice of every module with the fewest bytes at a total loss of at most `loss`, to a unit of size.

    ValueError if none has so little.
    """
    if least_loss(choices) > loss:
        raise ValueError(f"a loss of {loss:g}: the modules lose {least_loss(choices):g} at the least")
    best = {module: min(options, key=lambda c: (c.loss, c.nbytes)) for module, options in choices.items()}
    table = _Table(choices, sum(choice.nbytes for choice in best.values()) - least_bytes(choices))
    # Rounding up may push the best of all over the last unit; it is the answer where no cheaper one will do.
    good = np.flatnonzero(table.loss <= loss)
    return table.chosen(int(good[0])) if len(good) else best


class _Table:
    """loss[u]: the least loss of all modules within u units beyond their smallest sizes."""

    def __init__(self, choices: Choices, room: int) -> None:
        unit = max(room / UNITS, 1e-9)
        self.choices = choices
        self.loss: NDArray[np.float64] = np.zeros(UNITS + 1)
        self._picks: list[NDArray[np.uint8]] = []
        self._units: list[list[int]] = []
        for options in choices.values():
            smallest = min(choice.nbytes for choice in options)
            units = [int(np.ceil((choice.nbytes - smallest) / unit - 1e-9)) for choice in options]
            best = np.full(UNITS + 1, np.inf)
            pick = np.zeros(UNITS + 1, np.uint8)
            for index, (choice, cost) in enumerate(zip(options, units, strict=True)):
                if cost > UNITS:
                    continue
                with_it = self.loss[: UNITS + 1 - cost] + choice.loss
                better = with_it < best[cost:]
                best[cost:][better] = with_it[better]
                pick[cost:][better] = index
            self.loss = best
            self._picks.append(pick)
            self._units.append(units)

    def chosen(self, units: int) -> dict[str, Choice]:
        result: dict[str, Choice] = {}
        for module, pick, cost in reversed(list(zip(self.choices, self._picks, self._units, strict=True))):
            index = int(pick[units])
            result[module] = self.choices[module][index]
            units -= cost[index]
        return {module: result[module] for module in self.choices}


def _upgraded(choices: Choices, chosen: dict[str, Choice], nbytes: int) -> dict[str, Choice]:
    """Spends what the rounding of sizes left over: the upgrade that wins most, while one fits."""
    left = nbytes - sum(choice.nbytes for choice in chosen.values())
    while True:
        fitting = [
            (choice.loss - chosen[module].loss, module, choice)
            for module, options in choices.items()
            for choice in options
            if choice.loss < chosen[module].loss and choice.nbytes - chosen[module].nbytes <= left
        ]
        if not fitting:
            return chosen
        _, module, choice = min(fitting, key=lambda upgrade: (upgrade[0], upgrade[1]))
        left -= choice.nbytes - chosen[module].nbytes
        chosen[module] = choice
