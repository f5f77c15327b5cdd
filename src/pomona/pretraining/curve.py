"""The curve of a stage: one CSV row per step, appended as it comes, cut back to the checkpoint on resume."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType

from pomona.errors import PomonaError


@dataclass(frozen=True)
class Point:
    """One step. Losses in nats per token; gradient_norm before clipping; dropped: 1 if the step was not made.

    The last three depend on the clock; everything before them is a function of the recipe.
    """

    step: int
    tokens: int  # read so far in this stage
    loss: float  # cross-entropy
    z: float | None  # mean square of log Z
    gradient_norm: float
    lr: float
    dropped: int
    validation_loss: float | None
    tokens_per_second: float | None = None
    utilisation: float | None = None  # model FLOP made, over the FLOP that the devices can make
    seconds: float | None = None  # of this step


COLUMNS = tuple(field.name for field in fields(Point))
CLOCK = ("tokens_per_second", "utilisation", "seconds")


class Curve:
    """Appends to a CSV file. A context manager. PomonaError if the file is another's."""

    def __init__(self, path: Path, *, after: int = 0) -> None:
        """after: the step that training goes on from; rows beyond it are dropped (their steps come again)."""
        self.path = path
        kept = [point for point in read_curve(path) if point.step <= after] if after else []
        beside = path.with_name(f".{path.name}.new")
        with beside.open("w", encoding="utf-8", newline="") as file:
            file.write(",".join(COLUMNS) + "\n" + "".join(_row(point) for point in kept))
        os.replace(beside, path)
        self._file = path.open("a", encoding="utf-8", newline="")

    def add(self, point: Point) -> None:
        """One write per row, so that a killed process leaves at most one torn line."""
        self._file.write(_row(point))
        self._file.flush()

    def __enter__(self) -> Curve:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read_curve(path: Path) -> list[Point]:
    """The points of a file; a torn last line is passed over. PomonaError if it is no such file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise PomonaError(f"{path}: cannot be read ({error}); remove it to start its curve anew") from error
    whole = text[: text.rfind("\n") + 1]
    rows = list(csv.DictReader(io.StringIO(whole)))
    try:
        return [_point(row) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise PomonaError(f"{path}: is no curve of ours ({error}); remove it to start anew") from error


def _row(point: Point) -> str:
    # repr of a float gives all its digits back, so that equal curves are equal files.
    values = asdict(point).values()
    return ",".join("" if value is None else repr(value) for value in values) + "\n"


def _point(row: dict[str, str]) -> Point:
    if set(row) != set(COLUMNS):
        raise ValueError("other columns")
    whole = {"step", "tokens", "dropped"}
    values = {
        name: None if text == "" else int(text) if name in whole else float(text)
        for name, text in row.items()
    }
    return Point(**values)  # type: ignore[arg-type]
