"""What has been measured already, so that a long comparison can stop and go on.

One JSON file per contender, named by a hash of everything that its figures depend on: the bytes of its files,
of the reference and of the text, the protocol and the engine. Sums are kept window by window and question by
question, so that more windows of the same text only add to them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import BenchmarkError
from benchmarks.distributions import Sums, total

VERSION = 1


@dataclass
class Record:
    """Figures of one contender: sums by window, and log-likelihoods of the answers by task and question."""

    windows: dict[int, Sums] = field(default_factory=dict)
    tasks: dict[str, dict[int, list[float]]] = field(default_factory=dict)

    def sums(self, count: int) -> Sums:
        """Of the first `count` windows, which must be there."""
        return total(self.windows[index] for index in range(count))

    def missing_windows(self, indices: Iterable[int]) -> list[int]:
        return [index for index in indices if index not in self.windows]

    def missing_questions(self, task: str, count: int) -> list[int]:
        there = self.tasks.get(task, {})
        return [index for index in range(count) if index not in there]

    def to_json(self) -> dict[str, Any]:
        return {
            "windows": {str(index): sums.to_json() for index, sums in sorted(self.windows.items())},
            "tasks": {
                task: {str(index): values for index, values in sorted(rows.items())}
                for task, rows in self.tasks.items()
            },
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Record:
        return Record(
            {int(index): Sums.from_json(sums) for index, sums in value["windows"].items()},
            {
                task: {int(index): [float(v) for v in values] for index, values in rows.items()}
                for task, rows in value["tasks"].items()
            },
        )


class Store:
    """A folder of records. Written whole or not at all."""

    def __init__(self, folder: Path, *, fresh: bool = False) -> None:
        """fresh: what lies there is not read, and is replaced when a figure comes."""
        self.folder = folder
        self._fresh = fresh
        self._replaced: set[str] = set()

    def load(self, key: str) -> Record:
        """The record, empty if there is none. BenchmarkError for a file that is none of ours."""
        path = self._path(key)
        if not path.is_file() or (self._fresh and key not in self._replaced):
            return Record()
        try:
            return Record.from_json(json.loads(path.read_text(encoding="utf-8"))["record"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BenchmarkError(f"{path}: is damaged ({error}); delete it") from error

    def save(self, key: str, record: Record, about: Mapping[str, Any]) -> None:
        """about: what the key was made of, for whoever looks into the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(key)
        unfinished = path.with_suffix(".part")
        text = json.dumps({"about": about, "record": record.to_json()})
        unfinished.write_text(text + "\n", encoding="utf-8")
        unfinished.replace(path)
        self._replaced.add(key)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"


def key_of(about: Mapping[str, Any]) -> str:
    """Hash of a description, whatever the order of its keys."""
    text = json.dumps({"version": VERSION, **about}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def digest_of(paths: Iterable[Path]) -> str:
    """Hash of the bytes of some files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]
