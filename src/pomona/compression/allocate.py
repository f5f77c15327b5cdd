"""How many bits each projection gets: 4, 3 or 2, so that the whole meets a budget.

The loss of a choice is the relative squared error of the layer's output, estimated from the palettes that the
choice would give (input second moments as weights). Layers are taken as independent and as equally important;
the sum is minimised by stepping down the layer that loses least per byte saved, which is exact up to the last
step where the losses are convex in the bytes.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

from pomona.errors import PomonaError


@dataclass(frozen=True)
class Choice:
    """What a projection costs at some number of bits."""

    bits: int
    nbytes: int  # indices, tables and scales
    loss: float


def allocate(choices: Mapping[str, list[Choice]], weights: int, bits_per_weight: float) -> dict[str, int]:
    """Bits of every module so that 8 bytes / weight is at most `bits_per_weight`.

    choices: module -> its choices, from most bits to fewest. PomonaError when even the fewest are too many.
    """
    budget = bits_per_weight * weights / 8
    at = dict.fromkeys(choices, 0)
    total = sum(options[0].nbytes for options in choices.values())
    least = sum(options[-1].nbytes for options in choices.values())
    if least > budget:
        raise PomonaError(
            f"--bits {bits_per_weight}: the projections take {8 * least / weights:.2f} bits per weight at "
            "the least, tables and scales counted; ask for more"
        )
    steps: list[tuple[float, str, int, int]] = []  # loss per byte saved, module, from, to

    def offer(module: str) -> None:
        options, here = choices[module], at[module]
        rates = [
            ((options[to].loss - options[here].loss) / (options[here].nbytes - options[to].nbytes), to)
            for to in range(here + 1, len(options))
        ]
        if rates:
            rate, to = min(rates)
            heapq.heappush(steps, (rate, module, here, to))

    for module in choices:
        offer(module)
    while total > budget:
        _, module, here, to = heapq.heappop(steps)
        total += choices[module][to].nbytes - choices[module][here].nbytes
        at[module] = to
        offer(module)
    return {module: choices[module][index].bits for module, index in at.items()}
