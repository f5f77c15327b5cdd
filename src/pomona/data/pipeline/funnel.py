"""What became of the documents, step by step: read from datatrove's statistics of the finished tasks."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pomona.errors import PomonaError
from pomona.models.model_directory import read_json_object

_LABEL = re.compile(r"\d\d-[a-z0-9_]+")
_MAX_STATS = 1 << 24
_SAMPLES = 2
_SAMPLE_CHARACTERS = 300
_SAMPLE_LINES = 2000


@dataclass
class FunnelRow:
    """One step. documents: that came in and went on; characters: of those that went on; seconds: of processor
    time spent in it; removed: documents by reason; changed: items (lines, personal data) by kind."""

    label: str
    documents_in: int = 0
    documents_out: int = 0
    characters_out: int = 0
    seconds: float = 0.0
    removed: dict[str, int] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Funnel:
    """rows: in the order of the steps, the reader first. finished, tasks: over all stages."""

    name: str
    fingerprint: str
    files: int
    bytes: int
    finished: int
    tasks: int
    rows: tuple[FunnelRow, ...]

    @property
    def complete(self) -> bool:
        return self.finished == self.tasks

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "rows": [asdict(row) for row in self.rows], "complete": self.complete}


@dataclass(frozen=True)
class Sample:
    """The beginning of a removed document."""

    reason: str
    id: str
    text: str


def read_funnel(folder: Path) -> Funnel:
    """The funnel of a run, as far as it has come. PomonaError if no recipe was run in `folder`."""
    run = _read_run(folder)
    labels = ["00-read"] + [
        f"{number:02d}-{next(iter(step))}" for number, step in enumerate(run["recipe"]["steps"], start=1)
    ]
    rows = {label: FunnelRow(label) for label in labels}
    removed: dict[str, Counter[str]] = {label: Counter() for label in labels}
    changed: dict[str, Counter[str]] = {label: Counter() for label in labels}
    finished = tasks = files = size = 0
    for stage in run["stages"]:
        logs = folder / "logs" / stage["name"]
        done = len(list((logs / "completions").glob("*"))) if (logs / "completions").is_dir() else 0
        finished, tasks = finished + done, tasks + stage["tasks"]
        owner = found[0] if (found := _LABEL.match(stage["name"])) and "-to-" not in stage["name"] else None
        for step in _statistics(logs):
            label = step["name"] if step["name"] in rows else _owner(owner, rows)
            if label is None:
                continue
            rows[label].seconds += _number(step["time_stats"])
            if step["name"] not in rows:
                continue
            values = {key: _number(value) for key, value in step["stats"].items()}
            row = rows[label]
            row.documents_in += int(values.get("total", 0))
            row.documents_out += int(values.get("forwarded", 0))
            row.characters_out += int(values.get("doc_len", 0))
            files += int(values.get("files", 0))
            size += int(values.get("bytes", 0))
            for key, value in values.items():
                if key.startswith("dropped_"):
                    removed[label][key.removeprefix("dropped_")] += int(value)
                elif key.startswith("changed_"):
                    changed[label][key.removeprefix("changed_")] += int(value)
                elif key.startswith("line-filter-"):  # C4's
                    changed[label][f"line {key.removeprefix('line-filter-')}"] += int(value)
    for label, row in rows.items():
        row.removed = dict(removed[label].most_common())
        row.changed = dict(changed[label].most_common())
    return Funnel(
        run["recipe"]["name"], run["fingerprint"], files, size, finished, tasks, tuple(rows.values())
    )


def samples(folder: Path, label: str) -> list[Sample]:
    """A few of the documents that a step removed, of each reason some."""
    seen: Counter[str] = Counter()
    found = []
    for path in sorted((folder / "removed" / label).glob("*.jsonl.gz"))[:4]:
        for row in _rows(path):
            metadata = row.get("metadata", {})
            reason = str(metadata.get("filter_reason", ""))
            if seen[reason] < _SAMPLES:
                seen[reason] += 1
                text = str(row.get("text") or metadata.get("detail", ""))
                found.append(Sample(reason, str(row.get("id", "")), text[:_SAMPLE_CHARACTERS]))
    return found


def _read_run(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    if not path.is_file():
        raise PomonaError(f"{folder}: no recipe was run there (no run.json); see pomona data run --help")
    run = read_json_object(path)
    try:
        _ = [next(iter(step)) for step in run["recipe"]["steps"]]
        _ = [stage["name"] + "" for stage in run["stages"]], [stage["tasks"] + 0 for stage in run["stages"]]
        _ = run["recipe"]["name"], run["fingerprint"]
    except (KeyError, TypeError, StopIteration) as error:
        raise PomonaError(f"{path}: is not of the form of a run; run the recipe with --restart") from error
    return run


def _statistics(logs: Path) -> Iterator[dict[str, Any]]:
    """The steps of all finished tasks of a stage."""
    for path in sorted((logs / "stats").glob("*.json")):
        if not (logs / "completions" / path.stem).exists():
            continue
        try:
            if path.stat().st_size > _MAX_STATS:
                raise ValueError("too large")
            steps = json.loads(path.read_text(encoding="utf-8"))
            yield from (step for step in steps if {"name", "stats", "time_stats"} <= set(step))
        except (OSError, ValueError, TypeError) as error:
            raise PomonaError(f"{path}: is no statistics of a task ({error}); use --restart") from error


def _owner(label: str | None, rows: dict[str, FunnelRow]) -> str | None:
    return label if label in rows else None


def _number(value: Any) -> float:
    """datatrove writes a plain number where it says all, else an object with its total."""
    if isinstance(value, dict):
        value = value.get("total", 0)
    return float(value) if isinstance(value, int | float) else 0.0


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with gzip.open(path, "rb") as file:
            for _ in range(_SAMPLE_LINES):
                if not (line := file.readline(1 << 26)):
                    return
                row = json.loads(line)
                if isinstance(row, dict) and isinstance(row.get("metadata", {}), dict):
                    yield row
    except (OSError, EOFError, ValueError):  # a task that was killed leaves half a file
        return
