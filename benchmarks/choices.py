"""Multiple-choice questions for base comparisons: PIQA and ARC-challenge, the first rows of each.

As in the LM evaluation harness: the question is put as "Question: ...\\nAnswer:", every answer is scored as
its continuation, and the one with the highest log-likelihood per character wins. Everyone gets the same
tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import BenchmarkError

TASKS = ("piqa", "arc_challenge")
TITLES = {"piqa": "PIQA", "arc_challenge": "ARC-c"}
Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Question:
    """What is asked, the answers to choose from, and which one is right."""

    text: str
    answers: tuple[str, ...]
    right: int


@dataclass(frozen=True)
class Item:
    """One answer as tokens: the first `known` of them are the question, the others are scored."""

    tokens: tuple[int, ...]
    known: int


def read_questions(task: str, data: Path, count: int) -> list[Question]:
    """The first `count` questions of a task. BenchmarkError if the files are missing or not as expected."""
    reader = {"piqa": _piqa, "arc_challenge": _arc}[task]
    try:
        questions = reader(data / task, count)
    except OSError as error:
        raise BenchmarkError(
            f"{error.filename}: cannot be read; set POMONA_DATA to the folder of the data sets, or give "
            "--no-tasks"
        ) from error
    except (KeyError, ValueError) as error:
        raise BenchmarkError(
            f"{data / task}: not the data set that it should be ({error}); get it again"
        ) from error
    if len(questions) < count:
        raise BenchmarkError(f"{data / task}: holds {len(questions)} questions of {count}; get all of it")
    return questions


def _piqa(folder: Path, count: int) -> list[Question]:
    rows = _json_lines(folder / "valid.jsonl", count)
    labels = (folder / "valid-labels.lst").read_text(encoding="utf-8").split()
    return [
        Question(row["goal"], (row["sol1"], row["sol2"]), int(label))
        for row, label in zip(rows, labels, strict=False)
    ]


def _arc(folder: Path, count: int) -> list[Question]:
    questions = []
    for row in _json_lines(folder / "arc_challenge_test.jsonl", count):
        labels = [option["label"] for option in row["options"]]
        texts = tuple(option["text"] for option in row["options"])
        questions.append(Question(row["question"], texts, labels.index(row["answer"])))
    return questions


def _json_lines(path: Path, count: int) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for _, line in zip(range(count), file, strict=False)]


def items(question: Question, encode: Encode) -> list[Item]:
    """Every answer as a continuation of the question.

    The two are encoded together, so that no token is forced to end where the question does.
    """
    prompt = f"Question: {question.text}\nAnswer:"
    before = encode(prompt)
    result = []
    for answer in question.answers:
        tokens = encode(f"{prompt} {answer}")
        known = min(len(before), len(tokens) - 1)
        result.append(Item(tuple(tokens), known))
    return result


def is_right(question: Question, log_likelihoods: Sequence[float]) -> bool:
    """Whether the right answer has the highest log-likelihood per character."""
    if len(log_likelihoods) != len(question.answers):
        raise ValueError(f"{len(log_likelihoods)} likelihoods for {len(question.answers)} answers")
    scores = [
        value / max(len(answer), 1) for value, answer in zip(log_likelihoods, question.answers, strict=True)
    ]
    return max(range(len(scores)), key=scores.__getitem__) == question.right


def accuracy(questions: Sequence[Question], found: Sequence[Sequence[float]]) -> float:
    right = sum(is_right(question, values) for question, values in zip(questions, found, strict=True))
    return right / len(questions)
