"""A budget of bits, bytes or loss, turned into the bits of every module (allocate.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pomona.compression.allocate import Choice, allocate, allocate_for_loss, least_bytes, least_loss
from pomona.compression.report import ChoiceReport
from pomona.errors import PomonaError


class BudgetError(PomonaError):
    """A budget that no allocation meets; the message says what can be reached."""


@dataclass(frozen=True)
class Budget:
    """One of: bits per weight of all projections, bytes of the whole file, mean KL in nats per token."""

    bits: float | None = None
    size: int | None = None
    max_kl: float | None = None


def choose(
    choices: Mapping[str, Sequence[ChoiceReport]], budget: Budget, weights: int, other_bytes: int
) -> dict[str, int]:
    """Module -> bits. weights: of all modules; other_bytes: of everything else in the file, its header too.

    Where no sensitivity was measured, the squared relative error stands for the loss. PomonaError that says
    what can be reached if the budget cannot.
    """
    options = {
        module: [Choice(c.bits, c.bytes, c.relative_error**2 if c.kl is None else c.kl) for c in found]
        for module, found in choices.items()
    }
    if budget.max_kl is not None:
        if least_loss(options) > budget.max_kl:
            raise BudgetError(
                f"--max-kl {budget.max_kl:g}: the least that can be had is {least_loss(options):.2g}; "
                "ask for more"
            )
        chosen = allocate_for_loss(options, budget.max_kl)
    else:
        if budget.size is not None:
            nbytes = budget.size - other_bytes
        else:
            assert budget.bits is not None
            nbytes = int(budget.bits * weights / 8)
        low = least_bytes(options)
        if low > nbytes:
            if budget.size is not None:
                raise BudgetError(
                    f"--size {budget.size:,}: the model takes {low + other_bytes:,} bytes "
                    "at the least; ask for more"
                )
            raise BudgetError(
                f"--bits {budget.bits:g}: the projections take {8 * low / weights:.2f} bits per weight at "
                "the least, tables and scales counted; ask for more"
            )
        chosen = allocate(options, nbytes)
    return {module: choice.bits for module, choice in chosen.items()}
