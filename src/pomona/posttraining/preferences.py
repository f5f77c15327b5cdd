"""Preference data: two responses to one prompt and which is better, by how much, and grades of each alone.

A row of the JSONL file (report, sections 4.2 and 4.4; the columns `prompt`, `chosen` and `rejected` are those
that TRL reads and the Compare page exports):

    {"prompt": [{"role": "user", "content": "..."}], "chosen": "...", "rejected": "...",
     "level": "slightly_better",
     "gradings": {"chosen": {"truthfulness": "good"}, "rejected": {"truthfulness": "poor"}}}
    {"prompt": "...", "response": "...", "grading": {"harmlessness": "good", "conciseness": "fair"}}

Everything but the texts may be missing: a preference without a level, gradings of one response or of some
questions alone, or (second form) a grading without a preference. Problems are told with line numbers, as
adapters/data.py does, whose reader this is.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from pomona.adapters.data import (
    MAX_ROWS,
    BadRowError,
    DataReport,
    Message,
    Problem,
    file_sha256,
    parse_label,
    parse_line,
    parse_messages,
    read_lines,
)
from pomona.adapters.recipes.rows import write_jsonl
from pomona.errors import PomonaError, one_line
from pomona.models.tokenizer import Tokenizer
from pomona.posttraining.conversations import encode

Level = Literal["significantly_better", "better", "slightly_better", "negligibly_better"]
Question = Literal["instruction_following", "conciseness", "truthfulness", "harmlessness"]
Grade = Literal["poor", "fair", "good"]  # the report has three grades each; their names are ours

LEVELS: tuple[Level, ...] = get_args(Level)
QUESTIONS: tuple[Question, ...] = get_args(Question)
GRADES: tuple[Grade, ...] = get_args(Grade)
Gradings = Mapping[Question, Grade]

Contradictions = Literal["drop", "keep", "refuse"]

BAD = {
    "not UTF-8": "a line that is no UTF-8 text",
    "not JSON": "a line that is no JSON object",
    "line too long": "a line above 1 MiB",
    "wrong schema": "a key, role, level, question or grade that is none, or a text where none may be",
    "empty": "a prompt without text, or both responses empty",
    "empty preferred": "the better response is empty",
    "same responses": "both responses are the same text",
    "too long": "more tokens than the window",
    "template": "the chat template refused the row",
}
LEFT_OUT = {
    "duplicate": "the same as an earlier row, which is kept",
    "contradiction": "the same two responses preferred both ways, or one response graded in two ways",
}
REMARKS = {
    "empty response": "the worse response is empty, which is kept: it says that silence is worse",
    "no level": "a preference that does not say by how much",
}

_PAIR = {"prompt", "chosen", "rejected", "level", "gradings"}
_SINGLE = {"prompt", "response", "grading"}
_LABELS = {"license", "source"}


@dataclass(frozen=True)
class Response:
    """An answer of the assistant. gradings: what was asked about it alone; empty where nothing was."""

    text: str
    gradings: Gradings = field(default_factory=dict)


@dataclass(frozen=True)
class Preference:
    """One sound row. rejected None: a grading of `chosen` alone. level None: not said by how much."""

    line: int
    prompt: tuple[Message, ...]
    chosen: Response
    rejected: Response | None = None
    level: Level | None = None
    license: str | None = None
    source: str | None = None

    @property
    def responses(self) -> tuple[Response, ...]:
        return (self.chosen,) if self.rejected is None else (self.chosen, self.rejected)

    @property
    def prompt_key(self) -> bytes:
        """Equal for the same prompt; rows of one prompt stay on one side of a split."""
        return _digest(*(f"{message['role']}\0{message['content']}" for message in self.prompt))

    def conversation(self, response: Response) -> list[Message]:
        return [*self.prompt, {"role": "assistant", "content": response.text}]

    def to_json(self) -> dict[str, Any]:
        """The row as it stands in a file."""
        row: dict[str, Any] = {"prompt": list(self.prompt)}
        if self.rejected is None:
            row |= {"response": self.chosen.text, "grading": dict(self.chosen.gradings)}
        else:
            row |= {"chosen": self.chosen.text, "rejected": self.rejected.text, "level": self.level}
            gradings = {"chosen": dict(self.chosen.gradings), "rejected": dict(self.rejected.gradings)}
            row["gradings"] = {side: given for side, given in gradings.items() if given}
        row |= {"license": self.license, "source": self.source}
        return {key: value for key, value in row.items() if value not in (None, {})}


@dataclass
class PreferenceReport(DataReport):
    """What is known about a file of preferences. levels, questions: of the sound rows."""

    KINDS: ClassVar[Mapping[str, str]] = {**BAD, **LEFT_OUT, **REMARKS}
    BAD: ClassVar[Mapping[str, str]] = BAD

    levels: dict[str, int] = field(default_factory=dict)  # "" where a pair names none
    questions: dict[str, int] = field(default_factory=dict)  # graded responses per question

    @property
    def good(self) -> int:
        """Rows that can be trained on."""
        return self.read - sum(problem.kind in BAD or problem.kind in LEFT_OUT for problem in self.problems)

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "levels": self.levels, "questions": self.questions}


def read_preferences(
    path: Path | str, *, contradictions: Contradictions = "drop"
) -> tuple[list[Preference], PreferenceReport]:
    """The sound rows of a .jsonl file in its order, and what was wrong with the others.

    Of equal rows the first one stays. contradictions: rows that say the opposite of each other are left out
    (all of them), kept, or refuse the file. PomonaError: no such file, no row, or as asked.
    """
    path = Path(path)
    if path.suffix != ".jsonl":
        raise PomonaError(f"{path}: is no .jsonl file; give preferences as one JSON object a line")
    report = PreferenceReport(path.name, file_sha256(path))
    rows: list[Preference] = []
    for line, raw in read_lines(path):
        report.read += 1
        if report.read > MAX_ROWS:
            raise PomonaError(f"{path}: holds more than {MAX_ROWS:,} rows; split the file")
        try:
            rows.append(_row(line, parse_line(raw)))
        except BadRowError as error:
            report.problems.append(Problem(error.kind, line, one_line(error.what)[:200]))
    if not report.read:
        raise PomonaError(f"{path}: holds no row; give some")
    return checked(rows, report, contradictions=contradictions), report


def checked(
    rows: Sequence[Preference], report: PreferenceReport, *, contradictions: Contradictions = "drop"
) -> list[Preference]:
    """Rows without duplicates and contradictions, which the report counts."""
    kept = _without_duplicates(rows, report)
    opposed = _contradictions(kept)
    if opposed and contradictions == "refuse":
        raise PomonaError(
            f"{report.file}: {len(opposed)} rows contradict others (line {min(opposed)}: "
            f"{opposed[min(opposed)]}); mend them, or have them left out"
        )
    if contradictions == "drop":
        report.problems += [Problem("contradiction", line, what) for line, what in sorted(opposed.items())]
        kept = [row for row in kept if row.line not in opposed]
    for row in kept:
        if row.rejected is not None and row.level is None:
            report.problems.append(Problem("no level", row.line, "says only which one is better"))
        if row.rejected is not None and not row.rejected.text.strip():
            report.problems.append(Problem("empty response", row.line, "the worse response is empty"))
    report.levels = dict(Counter(row.level or "" for row in kept if row.rejected is not None))
    report.questions = dict(
        Counter(question for row in kept for response in row.responses for question in response.gradings)
    )
    report.licenses = dict(Counter(row.license or "" for row in kept))
    report.sources = dict(Counter(row.source or "" for row in kept))
    return kept


def write_preferences(path: Path, rows: Iterable[Preference]) -> int:
    """Writes a JSONL file that read_preferences reads; whole or not at all. The number of rows."""
    return write_jsonl(path, (row.to_json() for row in rows))


def split(
    rows: Sequence[Preference], share: float, *, seed: int
) -> tuple[list[Preference], list[Preference]]:
    """(to learn, held out): about `share` of the prompts with all their rows, by their texts and the seed."""
    if not 0 <= share <= 0.5:
        raise PomonaError(f"validation {share}: must lie in 0 .. 0.5")
    keys = sorted(
        {row.prompt_key for row in rows},
        key=lambda key: hashlib.sha256(seed.to_bytes(8, "big") + key).digest(),
    )
    count = 0 if share == 0 else min(max(round(share * len(keys)), 1), len(keys) - 1)
    chosen = set(keys[:count])
    return (
        [row for row in rows if row.prompt_key not in chosen],
        [row for row in rows if row.prompt_key in chosen],
    )


def fitting(
    rows: Sequence[Preference], tokenizer: Tokenizer, window: int, report: PreferenceReport
) -> list[Preference]:
    """Rows whose conversations have at most `window` tokens; the others become problems of the report."""
    kept = []
    for row in rows:
        try:
            longest = max(len(encode(row.conversation(response), tokenizer)) for response in row.responses)
        except PomonaError as error:
            report.problems.append(Problem("template", row.line, str(error)))
            continue
        if longest <= window:
            kept.append(row)
        else:
            what = f"{longest:,} tokens, the window has {window:,}"
            report.problems.append(Problem("too long", row.line, what))
    return kept


def rows_digest(rows: Sequence[Preference]) -> str:
    """Twelve hex digits of what rows say: a training run belongs to its rows."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row.to_json(), sort_keys=True).encode())
    return digest.hexdigest()[:12]


# --- one row


def _row(line: int, raw: Mapping[str, Any]) -> Preference:
    given = {key: value for key, value in raw.items() if value is not None}
    single = "response" in given
    known = (_SINGLE if single else _PAIR) | _LABELS
    if unknown := sorted(set(given) - known):
        raise BadRowError("wrong schema", f"{unknown[0]!r} is no key of such a row")
    texts = ("response",) if single else ("chosen", "rejected")
    if missing := [key for key in ("prompt", *texts) if key not in given]:
        raise BadRowError("wrong schema", f"has no {missing[0]}")
    prompt = _prompt(given["prompt"])
    license, source = (parse_label(given, name) for name in ("license", "source"))
    if single:
        grading = _gradings(given.get("grading"), "grading")
        if not grading:
            raise BadRowError("wrong schema", "has one response and no grading of it")
        if not (text := _text(given["response"], "response")).strip():
            raise BadRowError("empty", "the response is empty")
        return Preference(line, prompt, Response(text, grading), license=license, source=source)
    chosen, rejected = (_text(given[key], key) for key in texts)
    if not chosen.strip():
        kind = "empty preferred" if rejected.strip() else "empty"
        raise BadRowError(kind, "the better response has no text")
    if chosen == rejected:
        raise BadRowError("same responses", "chosen and rejected are the same")
    level = given.get("level")
    if level is not None and level not in LEVELS:
        raise BadRowError("wrong schema", f"level {level!r} is none of {', '.join(LEVELS)}")
    gradings = given.get("gradings", {})
    if not isinstance(gradings, dict) or set(gradings) - {"chosen", "rejected"}:
        raise BadRowError("wrong schema", "gradings must be an object with chosen and rejected")
    sides = [_gradings(gradings.get(side), f"gradings.{side}") for side in texts]
    return Preference(
        line, prompt, Response(chosen, sides[0]), Response(rejected, sides[1]), level, license, source
    )


def _prompt(value: Any) -> tuple[Message, ...]:
    messages = parse_messages(value, "user")
    if not messages:
        raise BadRowError("empty", "the prompt has no message")
    for number, message in enumerate(messages, start=1):
        if message["role"] == "system" and number > 1:
            raise BadRowError("wrong schema", f"message {number} is a system message; only the first may be")
        if not message["content"].strip():
            raise BadRowError("empty", f"message {number} ({message['role']}) has no text")
    if messages[-1]["role"] != "user":
        raise BadRowError("wrong schema", "the prompt does not end with the user's message")
    return tuple(messages)


def _text(value: Any, name: str) -> str:
    """A response: a text, or a list of one assistant's message."""
    messages = parse_messages(value, "assistant")
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise BadRowError("wrong schema", f"{name} is no text and no single assistant's message")
    return messages[0]["content"]


def _gradings(value: Any, name: str) -> dict[Question, Grade]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRowError("wrong schema", f"{name} must be an object of questions and grades")
    for question, grade in value.items():
        if question not in QUESTIONS:
            raise BadRowError("wrong schema", f"{name}: {question!r} is none of {', '.join(QUESTIONS)}")
        if grade is not None and grade not in GRADES:
            raise BadRowError("wrong schema", f"{name}.{question}: {grade!r} is none of {', '.join(GRADES)}")
    return {question: grade for question, grade in value.items() if grade is not None}


# --- rows against each other


def _digest(*parts: str) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8", "surrogatepass") + b"\0\1")
    return digest.digest()


def _without_duplicates(rows: Sequence[Preference], report: PreferenceReport) -> list[Preference]:
    seen: dict[str, int] = {}
    kept = []
    for row in rows:
        said = {key: value for key, value in row.to_json().items() if key not in _LABELS}
        first = seen.setdefault(json.dumps(said, sort_keys=True), row.line)
        if first == row.line:
            kept.append(row)
        else:
            report.problems.append(Problem("duplicate", row.line, f"the same as line {first}"))
    return kept


def _contradictions(rows: Sequence[Preference]) -> dict[int, str]:
    """Line -> what it contradicts."""
    order: dict[tuple[bytes, str, str], int] = {}
    grades: dict[tuple[bytes, str, str], tuple[str, int]] = {}
    found: dict[int, str] = {}
    for row in rows:
        if row.rejected is not None:
            a, b = row.chosen.text, row.rejected.text
            order.setdefault((row.prompt_key, a, b), row.line)
            other = order.get((row.prompt_key, b, a))
            if other is not None:
                found[row.line] = f"prefers the other response than line {other}"
                found.setdefault(other, f"prefers the other response than line {row.line}")
        for response in row.responses:
            for question, grade in response.gradings.items():
                key = (row.prompt_key, response.text, question)
                said, line = grades.setdefault(key, (grade, row.line))
                if said != grade:
                    found.setdefault(row.line, f"{question} is {grade}, and {said} by line {line}")
                    found.setdefault(line, f"{question} is {said}, and {grade} by line {row.line}")
    return found
