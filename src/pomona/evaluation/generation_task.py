"""Tasks in which the model writes: their questions, and what an answer scores.

    task = GenerationTask("gsm8k_cot", "1", 8, ("flexible",), questions, score)

A task brings its rows in order and counts; the harness asks, keeps answers and makes intervals. A score is a
pair (points, weight), so that a metric over parts of an item (IFEval's instructions) adds up over items like
one over items.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pomona.data.public_sets import MAX_BYTES, json_lines, read
from pomona.errors import PomonaError
from pomona.runtime.tools import Tool

Score = tuple[float, float]  # points, weight: a metric is the sum of points over the sum of weights
Message = Mapping[str, str]


@dataclass(frozen=True)
class Question:
    """One item of a task.

    prompt: raw text, or messages for the chat template. opening: how the answer begins; the model reads it
    and goes on from there. stops: the answer ends before the first of them. samples: so many answers of their
    own seeds. expected: whatever the score needs.
    """

    key: str
    prompt: str | tuple[Message, ...]
    max_new_tokens: int
    opening: str = ""
    stops: tuple[str, ...] = ()
    tools: tuple[Tool, ...] = ()
    samples: int = 1
    expected: Any = field(default=None, repr=False)


@dataclass(frozen=True)
class Setting:
    """What a task may know of a run.

    data: the folder of public sets; None: rows come from the hub. template: raw prompts go through the chat
    template too. samples: answers per item, where a task can use several. count: tokens of a text. room:
    tokens that prompt and answer of a chat may have together, without those of the template.
    """

    data: Path | None
    template: bool = False
    samples: int = 1
    count: Callable[[str], int] = lambda text: len(text.split())
    room: int = 1 << 30

    def prompt(self, text: str) -> str | tuple[Message, ...]:
        """A raw prompt, or one turn of the user if the template is wanted."""
        return ({"role": "user", "content": text},) if self.template else text

    def rows(self, place: str, hub: tuple[str, str | None, str] | None = None) -> Iterator[dict[str, Any]]:
        """The rows of a JSONL file of the data folder (.gz too), or of a split of a data set of the hub.

        PomonaError: no such file, a line that is no object, a set that the hub does not have for this task.
        """
        if self.data is None:
            yield from _hub_rows(place, hub)
            return
        path = self.data / place
        text = _unpacked(path) if path.suffix == ".gz" else read(path)
        yield from json_lines(path, text)

    def has(self, *places: str) -> bool:
        """Whether all of these files are in the data folder; False for rows from the hub."""
        return self.data is not None and all((self.data / place).exists() for place in places)


@dataclass(frozen=True)
class GenerationTask:
    """questions(setting) -> items in a fixed order. score(questions, their answers) -> for each question
    metric -> score. metrics: those that every run gives, the first one is the task's value.

    needs: files of the data folder; where they are missing, a task that is `optional` is left out of its
    suite, and said to be.
    """

    name: str
    version: str
    shots: int
    metrics: tuple[str, ...]
    questions: Callable[[Setting], Sequence[Question]]
    score: Callable[[Sequence[Question], Sequence[Sequence[str]]], Sequence[Mapping[str, Score]]]
    needs: tuple[str, ...] = ()
    optional: bool = False
    generates: bool = field(default=True, init=False)


def each(
    score: Callable[[Question, str], Mapping[str, Score]],
) -> Callable[[Sequence[Question], Sequence[Sequence[str]]], list[Mapping[str, Score]]]:
    """A task's score from that of a single answer."""

    def scores(questions: Sequence[Question], answers: Sequence[Sequence[str]]) -> list[Mapping[str, Score]]:
        return [score(question, first) for question, (first, *_) in zip(questions, answers, strict=True)]

    return scores


def text_of(row: Mapping[str, Any], key: str, source: str) -> str:
    """row[key], which must be a text. PomonaError otherwise."""
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise PomonaError(f"{source}: a row has no text {key!r}; get the set again")
    return value


def _unpacked(path: Path) -> str:
    """The text of a gzip file, bounded: a small file can hold a large one."""
    try:
        with gzip.open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise PomonaError(f"{path}: cannot be read ({error}); get the data set again") from error
    if len(raw) > MAX_BYTES:
        raise PomonaError(f"{path}: unpacks to more than 64 MiB, which no such file does; get it again")
    return raw.decode("utf-8", errors="replace")


def _hub_rows(place: str, hub: tuple[str, str | None, str] | None) -> Iterator[dict[str, Any]]:
    if hub is None:
        raise PomonaError(f"{place}: comes from local files alone; leave --hub away and set POMONA_DATA")
    if os.environ.get("HF_DATASETS_OFFLINE") == "1" or os.environ.get("HF_HUB_OFFLINE") == "1":
        raise PomonaError("--hub: HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set; unset it, or use local files")
    try:
        import datasets
    except ImportError as error:
        raise PomonaError("--hub needs the library datasets: pip install 'pomona[eval]'") from error
    name, configuration, split = hub
    try:
        found = datasets.load_dataset(name, configuration, split=split)
    except Exception as error:  # whatever the hub's client raises: no network, no such set, no rights
        raise PomonaError(f"{name}: cannot be had from the hub ({error}); use local files") from error
    for row in found:
        yield dict(row)
