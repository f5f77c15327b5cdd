"""Files of questions and answers in the forms of others."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pomona.errors import PomonaError
from pomona.evaluation.judge_questions import Answers, mt_bench, read_answers, read_questions, write_answers


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_the_three_forms_of_a_question(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "q.jsonl",
        {"question_id": 81, "category": "writing", "turns": ["One", "Two"], "reference": ["1", None]},
        {"question_id": "ab", "cluster": "SQL", "turns": [{"content": "Three"}]},
        {"uid": "c", "prompt": "Four", "subcategory": "x"},
        {"instruction": "Five"},
    )
    found = read_questions(path)
    assert [one.id for one in found] == ["81", "ab", "c", "4"]
    assert [one.turns for one in found] == [("One", "Two"), ("Three",), ("Four",), ("Five",)]
    assert (found[0].references, found[1].category) == (("1",), "SQL")


def test_the_forms_of_an_answer(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "a.jsonl",
        {
            "question_id": 81,
            "model_id": "m",
            "choices": [{"index": 0, "turns": ["x", "y"]}, {"turns": ["z"]}],
        },
        {"question_id": "h", "choices": [{"turns": [{"content": "h1"}]}]},
        {
            "uid": "v2",
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": {"answer": "v"}},
            ],
        },
        {"id": "own", "answer": "w"},
    )
    answers = read_answers(path)
    assert answers.name == "m"
    assert dict(answers.turns) == {"81": ("x", "y"), "h": ("h1",), "v2": ("v",), "own": ("w",)}


def test_answers_come_back_as_they_were_written(tmp_path: Path) -> None:
    answers = Answers("mine", {"81": ("a", "ü"), "x-1": ("b",)})
    write_answers(tmp_path / "mine.jsonl", answers)
    assert read_answers(tmp_path / "mine.jsonl") == answers
    row = json.loads((tmp_path / "mine.jsonl").read_text().splitlines()[0])
    assert row["question_id"] == 81 and row["choices"][0]["index"] == 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("nothing", "JSON"),
        ({"question_id": 1}, "no text"),
        ({"question_id": 1, "turns": []}, "1 to 16"),
        ({"question_id": 1, "turns": [1]}, "no text"),
        ({"question_id": 1, "turns": ["x" * 300_000]}, "characters"),
        ("[1]", "JSON"),
    ],
)
def test_what_is_no_question_is_refused_by_its_line(tmp_path: Path, row: Any, message: str) -> None:
    path = lines(tmp_path / "q.jsonl", {"question_id": 7, "turns": ["fine"]}, row)
    with pytest.raises(PomonaError, match=f"line 2: .*{message}"):
        read_questions(path)


@pytest.mark.parametrize(
    "row", [{"question_id": 1}, {"choices": [{"turns": ["x"]}]}, {"question_id": 1, "choices": [3]}]
)
def test_what_is_no_answer_is_refused_by_its_line(tmp_path: Path, row: Any) -> None:
    with pytest.raises(PomonaError, match=r"line 1: .*judge\.md"):
        read_answers(lines(tmp_path / "a.jsonl", row))


def test_a_question_stands_there_once_and_a_file_holds_some(tmp_path: Path) -> None:
    row = {"question_id": 7, "turns": ["x"]}
    with pytest.raises(PomonaError, match="twice"):
        read_questions(lines(tmp_path / "q.jsonl", row, row))
    with pytest.raises(PomonaError, match="holds no line"):
        read_questions(lines(tmp_path / "e.jsonl"))
    with pytest.raises(PomonaError, match="cannot be read"):
        read_questions(tmp_path / "missing.jsonl")


@pytest.mark.data
def test_mt_bench_has_eighty_questions_and_thirty_references() -> None:
    found = mt_bench(Path(os.environ["POMONA_DATA"]))
    assert len(found) == 80 and all(len(one.turns) == 2 for one in found)
    assert sum(len(one.references) == 2 for one in found) == 30
    assert {one.category for one in found if one.references} == {"math", "reasoning", "coding"}
