"""Questions for a judge and answers to them, in the files of MT-bench, Arena-Hard and AlpacaEval.

    questions = mt_bench(data_folder())                       # 80 questions of two turns
    questions = read_questions(Path("arena-hard.jsonl"))
    answers = read_answers(Path("gpt-4.jsonl"))               # FastChat's model_answer, Arena-Hard's too

Files are other people's: lines and texts are bounded, what is wrong is told with its line. Keys that are not
needed are passed over, for these files carry many.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pomona.adapters.data import BadRowError, parse_line, read_lines
from pomona.adapters.recipes.rows import write_jsonl
from pomona.errors import PomonaError

MAX_QUESTIONS = 20_000
MAX_TURNS = 16
MAX_CHARACTERS = 200_000  # of one text


@dataclass(frozen=True)
class Question:
    """turns: what the user says, one after the other. references: right answers, where they are known."""

    id: str
    turns: tuple[str, ...]
    category: str = ""
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answers:
    """name: who answered. turns: question's id -> an answer per turn; None where there is none."""

    name: str
    turns: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)

    def of(self, question: Question, turn: int) -> str | None:
        given = self.turns.get(question.id, ())
        return given[turn] if turn < len(given) else None


def read_questions(path: Path) -> list[Question]:
    """MT-bench's form (`question_id`, `category`, `turns`, `reference`), Arena-Hard's (turns as objects with
    `content`, or `uid` and `prompt`), or rows of `instruction`. PomonaError for anything else."""
    found: dict[str, Question] = {}
    for line, row in _rows(path):
        question = _question(row, path, line)
        if question.id in found:
            raise PomonaError(f"{path}, line {line}: the question {question.id} stands there twice")
        found[question.id] = question
    return list(found.values())


def mt_bench(folder: Path) -> list[Question]:
    """MT-bench's 80 questions, with GPT-4's reference answers where FastChat has them."""
    place = folder / "mt_bench"
    references = read_answers(place / "reference_gpt-4.jsonl")
    return [
        Question(one.id, one.turns, one.category, tuple(filter(None, references.turns.get(one.id, ()))))
        for one in read_questions(place / "question.jsonl")
    ]


def read_answers(path: Path) -> Answers:
    """FastChat's rows (`question_id`, `model_id`, `choices`), Arena-Hard's (`uid`, `model`, `messages`), or
    `id` with `answer`, a text or a list of texts. Of several choices the first counts."""
    found: dict[str, tuple[str | None, ...]] = {}
    name = ""
    for line, row in _rows(path):
        try:
            key = _key(row, "")
            if not key:
                raise BadRowError("wrong schema", "has no question_id")
            name = name or str(row.get("model_id") or row.get("model") or "")[:200]
            found[key] = tuple(_answer(row))
        except BadRowError as error:
            raise PomonaError(f"{path}, line {line}: {error}; see docs/judge.md") from error
    return Answers(name or path.stem, found)


def write_answers(path: Path, answers: Answers) -> None:
    """In FastChat's form, whole or not at all. An answer that is missing is an empty text there."""
    write_jsonl(
        path,
        (
            {
                "question_id": int(key) if key.isdecimal() else key,
                "model_id": answers.name,
                "choices": [{"index": 0, "turns": [turn or "" for turn in turns]}],
            }
            for key, turns in answers.turns.items()
        ),
    )


def _rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    found: list[tuple[int, dict[str, Any]]] = []
    try:
        for line, raw in read_lines(path):
            try:
                found.append((line, parse_line(raw)))
            except BadRowError as error:
                raise PomonaError(f"{path}, line {line}: {error}; give one JSON object a line") from error
            if len(found) > MAX_QUESTIONS:
                raise PomonaError(f"{path}: holds more than {MAX_QUESTIONS:,} lines; split the file")
    except OSError as error:
        raise PomonaError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    if not found:
        raise PomonaError(f"{path}: holds no line; give one JSON object a line")
    return found


def _question(row: Mapping[str, Any], path: Path, line: int) -> Question:
    try:
        turns = row.get("turns")
        if turns is None:
            turns = [row.get("prompt", row.get("instruction"))]
        if not isinstance(turns, list) or not 1 <= len(turns) <= MAX_TURNS:
            raise BadRowError("wrong schema", f"turns is no list of 1 to {MAX_TURNS} texts")
        reference = row.get("reference") or []
        return Question(
            _key(row, str(line)),
            tuple(_text(turn) for turn in turns),
            str(row.get("category") or row.get("cluster") or "")[:100],
            tuple(_text(one) for one in reference if one) if isinstance(reference, list) else (),
        )
    except BadRowError as error:
        raise PomonaError(f"{path}, line {line}: is no question: {error}; see docs/judge.md") from error


def _answer(row: Mapping[str, Any]) -> list[str | None]:
    if "choices" in row:
        choices = row["choices"]
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise BadRowError("wrong schema", "choices is no list of objects")
        turns = choices[0].get("turns")
    elif "messages" in row:
        messages = row["messages"] if isinstance(row["messages"], list) else []
        turns = [
            one.get("content") for one in messages if isinstance(one, dict) and one.get("role") == "assistant"
        ]
    else:
        turns = row.get("answer", row.get("output"))
        turns = [turns] if isinstance(turns, str) else turns
    if not isinstance(turns, list) or not 1 <= len(turns) <= MAX_TURNS:
        raise BadRowError("wrong schema", "has no answer")
    return [None if turn is None else _text(turn) for turn in turns]


def _key(row: Mapping[str, Any], otherwise: str) -> str:
    for name in ("question_id", "uid", "id"):
        if isinstance(value := row.get(name), str | int) and str(value):
            return str(value)[:200]
    return otherwise


def _text(value: Any) -> str:
    """A text, or the text in the objects that Arena-Hard puts around it."""
    for name in ("content", "answer"):
        if isinstance(value, dict):
            value = value.get(name, value)
    if not isinstance(value, str):
        raise BadRowError("wrong schema", "something that is no text stands where a text belongs")
    if len(value) > MAX_CHARACTERS:
        raise BadRowError("wrong schema", f"a text has {len(value):,} characters")
    return value
