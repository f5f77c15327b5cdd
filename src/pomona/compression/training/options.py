"""What a training run is asked for and what it tells. No torch here: the command line reads this file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar, get_args

from pomona.errors import PomonaError

Start = Literal["residual", "present", "zero"]


@dataclass(frozen=True)
class LoopOptions:
    """What every run of the loop is asked for. batch: windows of one pass through the network; accumulate:
    such passes in one optimizer step. passes: over all windows. minutes: a time budget; whichever of the two
    ends first ends the run, and with it the learning rate."""

    rank: int = 16
    alpha: float | None = None  # default 2 * rank
    lr: float = 1e-3
    batch: int = 4
    accumulate: int = 2
    passes: int = 3
    minutes: float | None = None
    warm_up: float = 0.05  # of the run
    last_lr: float = 0.05  # of the highest, at the end of the cosine; 1: the rate stays
    clip: float = 1.0  # of the gradient's norm
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
            ("seed", 0, (1 << 63) - 1),
        ):
            self._check_whole(name, low, high)
        for name in ("lr", "minutes", "alpha", "clip"):
            self._check_positive(name)
        if not 0 <= self.warm_up < 1:
            raise PomonaError(f"warm_up = {self.warm_up}: must lie in 0 .. 1")
        if not 0 <= self.last_lr <= 1:
            raise PomonaError(f"last_lr = {self.last_lr}: must lie in 0 .. 1")

    def _check_whole(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if type(value) is not int or not low <= value <= high:
            raise PomonaError(f"{name} = {value!r}: must be a whole number in {low} .. {high}")

    def _check_positive(self, name: str) -> None:
        value = getattr(self, name)
        if value is not None and not 0 < value < 1e6:
            raise PomonaError(f"{name} = {value}: must be a positive number")


@dataclass(frozen=True)
class TrainOptions(LoopOptions):
    """Of recovery. tables: train the tables and row scales of the base too. start: residual.py, the
    adapter that is there, or one that does nothing."""

    tables: bool = False
    start: Start = "residual"
    table_lr: float = 0.2  # of lr: tables hold values of the size of 1
    evaluate_tokens: int = 65_536  # between two evaluations

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_whole("evaluate_tokens", 1, 1 << 40)
        self._check_positive("table_lr")
        if self.start not in get_args(Start):
            raise PomonaError(f"start = {self.start!r}: choose one of {', '.join(get_args(Start))}")


class Scored(Protocol):
    """One evaluation; the lower its score the better."""

    @property
    def step(self) -> int: ...

    @property
    def score(self) -> float: ...


P = TypeVar("P", bound=Scored)
P_co = TypeVar("P_co", bound=Scored, covariant=True)


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

    @property
    def score(self) -> float:
        return self.held_out_kl


@dataclass(frozen=True)
class Outcome(Generic[P]):
    points: tuple[P, ...]
    best: P
    stopped: str  # done, early or time

    @property
    def start(self) -> P:
        return self.points[0]

    @property
    def improved(self) -> bool:
        return self.best.score < self.start.score
