"""What an adaptation is asked for, what is chosen where nothing is said, and what one evaluation tells.

No torch here: the command line reads this file. The defaults are our own choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from pomona.compression.training.options import LoopOptions
from pomona.errors import PomonaError

Schedule = Literal["cosine", "constant"]
MIN_WINDOW, MAX_WINDOW = 16, 32_768
PASS_TOKENS = 2048  # of one pass through the network: larger ones are no faster and take more memory
EVALUATIONS = 12  # of a whole run

# Training rows below -> times that they are read, rows of a step, highest learning rate.
DEFAULTS: tuple[tuple[float, tuple[int, int, float]], ...] = (
    (100, (10, 4, 5e-4)),
    (1_000, (5, 8, 5e-4)),
    (10_000, (3, 16, 5e-4)),
    (float("inf"), (2, 32, 5e-4)),
)


@dataclass(frozen=True)
class AdaptOptions:
    """None: by the number of rows (DEFAULTS), or for the window the model's context, 1,024 at the most.

    batch: rows of one optimizer step. window: tokens of the longest row that is taken. minutes: a time
    budget; whichever of it and the epochs ends first ends the run, and with it the learning rate. validation:
    the share of the rows that is held out."""

    rank: int = 16
    lr: float | None = None
    epochs: int | None = None
    batch: int | None = None
    window: int | None = None
    schedule: Schedule = "cosine"
    warm_up: float = 0.05
    validation: float = 0.1
    minutes: float | None = None
    patience: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.schedule not in get_args(Schedule):
            raise PomonaError(f"schedule = {self.schedule!r}: choose one of {', '.join(get_args(Schedule))}")
        if self.window is not None and not MIN_WINDOW <= self.window <= MAX_WINDOW:
            raise PomonaError(f"window {self.window}: must lie in {MIN_WINDOW} .. {MAX_WINDOW} tokens")
        if not 0 < self.validation <= 0.5:
            raise PomonaError(f"validation {self.validation}: must lie above 0 and not above 0.5")
        self.loop(1)  # refuses the rest

    def loop(self, rows: int, *, alpha: float | None = None) -> LoopOptions:
        """The loop's options for so many training rows; its windows are rows."""
        epochs, batch, lr = next(values for limit, values in DEFAULTS if rows < limit)
        return LoopOptions(
            rank=self.rank,
            alpha=alpha,
            lr=lr if self.lr is None else self.lr,
            batch=min(batch if self.batch is None else self.batch, max(rows, 1)),
            accumulate=1,
            passes=epochs if self.epochs is None else self.epochs,
            minutes=self.minutes,
            warm_up=self.warm_up,
            last_lr=0.05 if self.schedule == "cosine" else 1.0,
            patience=self.patience,
            seed=self.seed,
        )

    def window_for(self, context: int) -> int:
        """PomonaError: more than the model's context."""
        if self.window is not None and self.window > context:
            raise PomonaError(f"window {self.window}: the model's context has {context} tokens; choose less")
        return self.window or min(context, 1024)


@dataclass(frozen=True)
class AdaptPoint:
    """One evaluation: losses in nats per learnt token; `loss` of the training rows since the point before.
    accuracy: how often the likeliest token was the right one. tokens: read so far, prompts included."""

    step: int
    tokens: int
    seconds: float
    loss: float | None
    validation_loss: float
    accuracy: float
    lr: float
    tokens_per_second: float | None

    @property
    def score(self) -> float:
        return self.validation_loss
