"""TensorBoard event files of a run, where tensorboard is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from pomona.adapters.options import AdaptPoint
from pomona.compression.training.loop import Step

FOLDER = "tensorboard"


class EventLog:
    """Does nothing where tensorboard is not installed. A context manager."""

    def __init__(self, folder: Path, *, step: int = 0) -> None:
        """step: of the run that goes on; what an interrupted one wrote beyond it is hidden."""
        self._writer: Any = None
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / FOLDER), purge_step=step + 1 if step else None)

    def on_step(self, step: Step) -> None:
        values = {"train/loss": step.loss, "train/lr": step.lr, "train/gradient_norm": step.norm}
        if step.seconds > 0:
            values["train/tokens_per_second"] = step.tokens / step.seconds
        self.write(values, step.step)

    def on_point(self, point: AdaptPoint) -> None:
        values = {"validation/loss": point.validation_loss, "validation/accuracy": point.accuracy}
        self.write(values, point.step)

    def write(self, values: dict[str, float], step: int) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()
