"""Training rows: what a recipe is asked for, what it gives, and how rows are written.

A recipe is a module with `examples(options)`, an endless or finite stream of examples for training, and
`held_out(folder)`, the examples for evaluation, which share no template, name or page with the former.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pomona.adapters.tasks.registry import get
from pomona.adapters.tasks.task import Example, Task
from pomona.errors import PomonaError

if TYPE_CHECKING:
    from pomona.adapters.recipes.writer import Writer

OWN = "pomona"  # source and licence of what is made from the project's own templates
OWN_LICENSE = "Apache-2.0"
HELD_OUT_SEED = 20_260
MAX_ROWS = 1_000_000
_STALE = 2_000  # so many repeated examples in a row: there are no more different ones


@dataclass(frozen=True)
class RecipeOptions:
    """rows: how many at most. data: the folder of public data sets; None: only what pomona makes itself.
    writer: a model that writes answers to texts that have none; None: only rows with known answers."""

    rows: int = 2000
    seed: int = 0
    data: Path | None = None
    writer: Writer | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.rows <= MAX_ROWS:
            raise PomonaError(f"rows = {self.rows}: must lie in 1 .. {MAX_ROWS:,}")

    def rng(self, name: str) -> random.Random:
        """A source of chance of its own for each part of a recipe, so that parts do not shift each other."""
        return random.Random(f"{self.seed}/{name}")


@dataclass
class RowReport:
    """What was written."""

    task: str
    rows: int = 0
    repeated: int = 0  # examples that were left out because they were there already
    sources: Counter[str] = field(default_factory=Counter)
    licenses: Counter[str] = field(default_factory=Counter)
    characters: int = 0


def rows(task: Task, options: RecipeOptions, report: RowReport | None = None) -> Iterator[dict[str, Any]]:
    """Different rows of a task's recipe, at most `options.rows`."""
    report = report or RowReport(task.name)
    seen: set[str] = set()
    stale = 0
    for example in import_module(task.recipe).examples(options):
        row = task.row(example)
        key = json.dumps(row["messages"], ensure_ascii=False)
        stale = stale + 1 if key in seen else 0
        if stale > _STALE or report.rows >= options.rows:
            return
        if key in seen:
            report.repeated += 1
            continue
        seen.add(key)
        report.rows += 1
        report.sources[example.source] += 1
        report.licenses[example.license] += 1
        report.characters += len(key)
        yield row
        if report.rows >= options.rows:
            return


def write_rows(name: str, out: Path, options: RecipeOptions, *, overwrite: bool = False) -> RowReport:
    """Writes the rows of task `name` to a JSONL file, which appears whole or not at all."""
    task = get(name)
    if out.exists() and not overwrite:
        raise PomonaError(f"{out}: is there already; choose another file, or use --overwrite")
    report = RowReport(name)
    write_jsonl(out, rows(task, options, report))
    return report


def write_jsonl(out: Path, lines: Iterable[dict[str, Any]]) -> int:
    """Writes lines beside `out` and renames; the number of lines. PomonaError: none, or not writable."""
    count = 0
    partial: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
        partial = Path(name)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                count += 1
        if count == 0:
            raise PomonaError(f"{out}: the recipe gave no rows; see docs/recipe.md for what it needs")
        partial.chmod(0o666 & ~_umask())
        partial.replace(out)
    except OSError as error:
        raise PomonaError(f"{out}: cannot be written ({error.strerror}); check the path") from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)
    return count


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def mixed(rng: random.Random, *streams: tuple[float, Iterator[Example]]) -> Iterator[Example]:
    """Examples of several streams by their weights, until all are at their end."""
    left = list(streams)
    while left:
        index = rng.choices(range(len(left)), [weight for weight, _ in left])[0]
        try:
            yield next(left[index][1])
        except StopIteration:
            del left[index]
