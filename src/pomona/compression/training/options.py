"""What a training run is asked for and what it tells. No torch here: the command line reads this file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from pomona.errors import PomonaError

Start = Literal["residual", "zero"]


@dataclass(frozen=True)
class TrainOptions:
    """batch: windows of one pass through the network; accumulate: such passes in one optimizer step. passes:
    over the whole text. minutes: a time budget; whichever of the two ends first ends the run, and with it the
    learning rate. tables: train the tables and row scales of the base too. start: residual.py, or an adapter
    that does nothing."""

    rank: int = 16
    alpha: float | None = None  # default 2 * rank
    tables: bool = False
    start: Start = "residual"
    lr: float = 1e-3
    table_lr: float = 0.2  # of lr: tables hold values of the size of 1
    batch: int = 4
    accumulate: int = 2
    passes: int = 3
    minutes: float | None = None
    warm_up: float = 0.05  # of the run
    last_lr: float = 0.05  # of the highest, at the end of the cosine
    clip: float = 1.0  # of the gradient's norm
    evaluate_tokens: int = 65_536  # between two evaluations
    patience: int = 8  # evaluations without a better one, until the run stops early
    seed: int = 0

    @property
    def scale(self) -> float:
        """alpha / rank: what B A is multiplied with."""
        return (2 * self.rank if self.alpha is None else self.alpha) / self.rank

    def __post_init__(self) -> None:
        for name, low, high in (
            ("rank", 1, 1024),
            ("batch", 1, 1024),
            ("accumulate", 1, 1024),
            ("passes", 1, 1000),
            ("patience", 1, 1 << 30),
            ("evaluate_tokens", 1, 1 << 40),
            ("seed", 0, (1 << 63) - 1),
        ):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise PomonaError(f"{name} = {value!r}: must be a whole number in {low} .. {high}")
        for name in ("lr", "table_lr", "minutes", "alpha", "clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1e6:
                raise PomonaError(f"{name} = {value}: must be a positive number")
        if self.start not in get_args(Start):
            raise PomonaError(f"start = {self.start!r}: choose one of {', '.join(get_args(Start))}")
        for name in ("warm_up", "last_lr"):
            if not 0 <= getattr(self, name) < 1:
                raise PomonaError(f"{name} = {getattr(self, name)}: must lie in 0 .. 1")


@dataclass(frozen=True)
class Point:
    """One evaluation: KL in nats per token, `kl` of the training text since the point before."""

    step: int
    tokens: int
    seconds: float
    kl: float | None
    held_out_kl: float
    same_top: float
    lr: float
    tokens_per_second: float | None


@dataclass(frozen=True)
class Outcome:
    points: tuple[Point, ...]
    best: Point
    stopped: str  # done, early or time

    @property
    def start(self) -> Point:
        return self.points[0]

    @property
    def improved(self) -> bool:
        return self.best.held_out_kl < self.start.held_out_kl
