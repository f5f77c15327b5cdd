"""What a task in which the model writes may read: rows of files, packed or not, and of the hub."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from pomona.errors import PomonaError
from pomona.evaluation import generation_task
from pomona.evaluation.generation_task import Question, Setting, each, text_of


def test_rows_come_from_a_file_packed_or_not(tmp_path: Path) -> None:
    rows = [{"a": 1}, {"a": 2}]
    text = "".join(json.dumps(row) + "\n\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(text)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    setting = Setting(tmp_path)
    assert list(setting.rows("rows.jsonl")) == list(setting.rows("rows.jsonl.gz")) == rows
    assert setting.has("rows.jsonl") and not setting.has("rows.jsonl", "others.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", b"[1]\n", "line 1"),
        ("rows.jsonl", b'{"a": 1}\n{"a":\n', "line 2"),
        ("rows.jsonl.gz", b"no gzip at all", "cannot be read"),
        ("rows.jsonl.gz", gzip.compress(b'{"a": 1}')[:-9], "cannot be read"),
    ],
)
def test_what_is_no_row_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PomonaError, match=message):
        list(Setting(tmp_path).rows(name))


def test_a_small_file_does_not_unpack_to_a_large_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation_task, "MAX_BYTES", 1000)
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(b" " * 5000))
    with pytest.raises(PomonaError, match="unpacks to more"):
        list(Setting(tmp_path).rows("bomb.jsonl.gz"))


def test_rows_of_the_hub_are_those_of_a_named_set(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    asked = []

    def load(name: str, configuration: str | None, split: str) -> list[dict[str, int]]:
        asked.append((name, configuration, split))
        if name == "no/such":
            raise ValueError("not there")
        return [{"a": 1}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(Setting(None).rows("x.jsonl", ("an/id", "main", "test"))) == [{"a": 1}]
    assert asked == [("an/id", "main", "test")]
    with pytest.raises(PomonaError, match="cannot be had from the hub"):
        list(Setting(None).rows("x.jsonl", ("no/such", None, "test")))


def test_the_hub_is_refused_where_it_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PomonaError, match="local files alone"):
        list(Setting(None).rows("x.jsonl"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(PomonaError, match="HF_HUB_OFFLINE"):
        list(Setting(None).rows("x.jsonl", ("an/id", None, "test")))


def test_a_raw_prompt_goes_through_the_template_if_wanted(tmp_path: Path) -> None:
    assert Setting(tmp_path).prompt("x") == "x"
    assert Setting(tmp_path, template=True).prompt("x") == ({"role": "user", "content": "x"},)


def test_a_score_of_one_answer_makes_that_of_a_task() -> None:
    score = each(lambda question, answer: {"same": (float(question.key == answer), 1.0)})
    questions = [Question("a", "", 1), Question("b", "", 1)]
    assert score(questions, [["a", "x"], ["x", "b"]]) == [{"same": (1.0, 1.0)}, {"same": (0.0, 1.0)}]


def test_a_row_without_its_text_is_refused() -> None:
    assert text_of({"a": "x"}, "a", "file") == "x"
    for row in ({}, {"a": 3}, {"a": " "}):
        with pytest.raises(PomonaError, match="file: a row has no text 'a'"):
            text_of(row, "a", "file")
