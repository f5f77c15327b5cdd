"""`pomona judge`: from files and an endpoint to a result, in words and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.scripted_judge import ScriptedJudge, scripted


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POMONA_CACHE", str(tmp_path / "cache"))
    questions = [{"question_id": i, "category": "writing", "turns": [f"q{i}", "more"]} for i in range(4)]
    for name, word in (("ours", "good"), ("theirs", "bad")):
        rows = [{"question_id": i, "model_id": name, "choices": [{"turns": [word, word]}]} for i in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    return tmp_path


@pytest.fixture
def judge() -> Any:
    def script(body: dict[str, Any]) -> str:
        if "response_format" in body:
            return json.dumps({"choice": "A"})
        text = body["messages"][1]["content"]
        if "rating" in body["messages"][0]["content"]:
            return "[[7]]"
        return "[[A]]" if text.index("\ngood\n") < text.index("\nbad\n") else "[[B]]"

    with scripted(script) as running:
        yield running


def arguments(files: Path, judge: ScriptedJudge, *more: str) -> list[str]:
    return [
        "judge", str(files / "ours.jsonl"), "--judge", judge.source,
        "--questions", str(files / "questions.jsonl"), *more,
    ]  # fmt: skip


def test_a_pair_of_files_is_judged(pomona: Any, files: Path, judge: ScriptedJudge) -> None:
    out, pairs = files / "result.json", files / "pairs.jsonl"
    more = ("--against", str(files / "theirs.jsonl"))
    found = pomona(*arguments(files, judge, *more, "--out", str(out), "--pairs", str(pairs), "--json"))
    assert found.code == 0, found.err
    result = json.loads(found.out)
    assert (result["a"], result["b"], result["judge"]) == ("ours", "theirs", "scripted")
    assert result["win_rate"]["value"] == 1.0 and result["wins"]["count"] == 8 and result["asked"] == 16
    whole = json.loads(out.read_text())
    assert len(whole["judgements"]) == 16 and whole["judgements"][0]["reply"] in ("[[A]]", "[[B]]")
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    assert rows[0] == {"id": "0", "prompt": "q0", "a": "good", "b": "bad"} and len(rows) == 4
    words = pomona(*arguments(files, judge, *more))
    assert words.code == 0 and "win rate of A" in words.out and "16 kept" in words.err


def test_ratings_guided_verdicts_and_fresh_replies(pomona: Any, files: Path, judge: ScriptedJudge) -> None:
    found = pomona(*arguments(files, judge, "--protocol", "single", "--limit", "2"))
    assert found.code == 0 and "7.00" in found.out
    more = ("--against", str(files / "theirs.jsonl"), "--guided", "--json", "--fresh")
    result = json.loads(pomona(*arguments(files, judge, *more)).out)
    assert result["guided"] and result["orders_agree"]["value"] == 0.0 and result["kept"] == 0
    copies = files / "copies"
    pomona(*arguments(files, judge, *more, "--answers-out", str(copies)))
    assert sorted(path.name for path in copies.iterdir()) == ["ours.jsonl", "theirs.jsonl"]


def test_answers_are_there_even_if_the_judge_fails(pomona: Any, files: Path) -> None:
    with scripted(lambda body: "I cannot say.") as silent:
        more = ("--against", str(files / "theirs.jsonl"), "--answers-out", str(files / "kept"))
        found = pomona(*arguments(files, silent, *more, "--pairs", str(files / "pairs.jsonl")))
    assert found.code == 2 and "16 x no verdict" in found.err
    assert (files / "kept" / "ours.jsonl").is_file() and (files / "pairs.jsonl").is_file()


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ((), "--against"),
        (("--protocol", "single", "--human", "x.jsonl"), "--human"),
        (("--protocol", "single", "--pairs", "x.jsonl"), "--pairs"),
        (("--against", "missing.jsonl"), "missing.jsonl"),
        (("--against", "ours.jsonl", "--prompts", "nowhere.jsonl"), "nowhere.jsonl"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    pomona: Any, files: Path, judge: ScriptedJudge, more: tuple[str, ...], complaint: str
) -> None:
    found = pomona(*arguments(files, judge, *more))
    assert found.code == 2 and complaint in found.err
