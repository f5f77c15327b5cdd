"""Preference files: what is read, what is refused with its line, what contradicts, what is written back."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.errors import PomonaError
from pomona.posttraining.preference_sets import assigned_level, public_preferences
from pomona.posttraining.preferences import (
    LEVELS,
    QUESTIONS,
    Preference,
    Response,
    read_preferences,
    split,
    write_preferences,
)


def pair(**changes: Any) -> dict[str, Any]:
    return {"prompt": "q", "chosen": "yes", "rejected": "no", "level": "better", **changes}


def read(path: Path, *rows: Any, **options: Any) -> Any:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.joinpath("p.jsonl").write_bytes(b"\n".join(lines))
    return read_preferences(path / "p.jsonl", **options)


def test_a_row_may_lack_its_level_its_gradings_or_its_preference(tmp_path: Path) -> None:
    rows, report = read(
        tmp_path,
        pair(gradings={"chosen": {"truthfulness": "good"}, "rejected": {"conciseness": "poor"}}),
        pair(prompt="other", level=None),
        {"prompt": "q", "response": "hm", "grading": {"harmlessness": "fair"}, "license": "CC0-1.0"},
    )
    assert [row.level for row in rows] == ["better", None, None]
    assert rows[0].chosen.gradings == {"truthfulness": "good"}
    assert rows[2].rejected is None and rows[2].chosen.gradings == {"harmlessness": "fair"}
    assert report.counts() == {"no level": 1}
    assert report.levels == {"better": 1, "": 1}
    assert report.questions == {"truthfulness": 1, "conciseness": 1, "harmlessness": 1}
    assert not report.bad and report.good == 3


def test_the_columns_of_trl_and_of_the_compare_page_are_read(tmp_path: Path) -> None:
    row = {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "q"}],
        "chosen": [{"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "assistant", "content": "no"}],
        "source": "pomona compare 1a2b, a over b",
    }
    [found], _ = read(tmp_path, row)
    assert [message["role"] for message in found.prompt] == ["system", "user"]
    assert (found.chosen.text, found.rejected.text, found.level) == ("yes", "no", None)
    assert found.conversation(found.chosen)[-1] == {"role": "assistant", "content": "yes"}


@pytest.mark.parametrize(
    ("row", "kind", "says"),
    [
        (b"\xff{}", "not UTF-8", "byte 0"),
        (b"[1]", "not JSON", ""),
        (b'{"prompt": NaN}', "not JSON", ""),
        (pair(chosen=None), "wrong schema", "no chosen"),
        (pair(level="much_better"), "wrong schema", "much_better"),
        (pair(colour="red"), "wrong schema", "colour"),
        (pair(gradings={"chosen": {"beauty": "good"}}), "wrong schema", "beauty"),
        (pair(gradings={"chosen": {"truthfulness": 2}}), "wrong schema", "truthfulness"),
        (pair(gradings={"both": {}}), "wrong schema", "gradings"),
        (pair(prompt=[{"role": "assistant", "content": "x"}]), "wrong schema", "user's message"),
        (pair(prompt=" "), "empty", "no text"),
        (pair(chosen=[{"role": "user", "content": "x"}]), "wrong schema", "chosen"),
        (pair(chosen="", rejected=""), "empty", "no text"),
        (pair(chosen=" \n"), "empty preferred", "no text"),
        (pair(rejected="yes"), "same responses", "same"),
        ({"prompt": "q", "response": "x"}, "wrong schema", "grading"),
        ({"prompt": "q", "response": "", "grading": {"truthfulness": "good"}}, "empty", "empty"),
        ({"prompt": "q", "response": "x", "grading": {}, "level": "better"}, "wrong schema", "level"),
    ],
)
def test_a_bad_row_is_told_with_its_line_and_leaves_the_others(
    tmp_path: Path, row: Any, kind: str, says: str
) -> None:
    rows, report = read(tmp_path, pair(), row)
    assert len(rows) == 1
    [problem] = report.bad
    assert (problem.kind, problem.line) == (kind, 2)
    assert says in problem.what
    assert report.first_bad().startswith("line 2:")


def test_an_empty_response_that_is_the_worse_one_is_kept_and_shown(tmp_path: Path) -> None:
    rows, report = read(tmp_path, pair(rejected=""))
    assert len(rows) == 1 and report.counts() == {"empty response": 1}


def test_contradictions_are_left_out_kept_or_refused(tmp_path: Path) -> None:
    rows = (
        pair(),
        pair(chosen="no", rejected="yes", level="slightly_better"),
        pair(prompt="other"),
        {"prompt": "q", "response": "a", "grading": {"truthfulness": "good"}},
        {"prompt": "q", "response": "a", "grading": {"truthfulness": "poor"}},
        {"prompt": "q", "response": "a", "grading": {"conciseness": "good"}},
    )
    kept, report = read(tmp_path, *rows)
    assert [row.line for row in kept] == [3, 6]
    assert report.counts() == {"contradiction": 4}
    assert [problem.line for problem in report.problems] == [1, 2, 4, 5]
    assert "line 2" in report.problems[0].what
    assert ("contradiction", "4", "lines 1, 2, 4, 5") in report.table()
    assert report.good == 2 and not report.bad
    assert len(read(tmp_path, *rows, contradictions="keep")[0]) == 6
    with pytest.raises(PomonaError, match=r"4 rows contradict others .line 1"):
        read(tmp_path, *rows, contradictions="refuse")


def test_of_equal_rows_the_first_stays_and_levels_alone_make_no_contradiction(tmp_path: Path) -> None:
    rows, report = read(
        tmp_path,
        pair(),
        pair(source="elsewhere"),
        pair(level="slightly_better"),
        pair(prompt=[{"role": "user", "content": "q"}]),
    )
    assert [row.line for row in rows] == [1, 3]
    assert report.counts() == {"duplicate": 2}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    rows, _ = read(
        tmp_path,
        pair(gradings={"rejected": {"conciseness": "poor"}}, license="MIT"),
        pair(prompt="a", level=None),
        {"prompt": "q", "response": "hm", "grading": {"harmlessness": "fair"}},
    )
    write_preferences(tmp_path / "again.jsonl", rows)
    again, _ = read_preferences(tmp_path / "again.jsonl")
    assert again == rows


def test_rows_of_one_prompt_stay_on_one_side_of_the_split() -> None:
    rows = [
        Preference(i, ({"role": "user", "content": f"q{i % 20}"},), Response(f"a{i}"), Response("b"))
        for i in range(100)
    ]
    learn, held_out = split(rows, 0.2, seed=1)
    assert len(held_out) == 20 and len(learn) == 80
    assert not {row.prompt_key for row in learn} & {row.prompt_key for row in held_out}
    assert split(rows[::-1], 0.2, seed=1)[1] == held_out[::-1]
    assert split(rows, 0.2, seed=2)[1] != held_out
    assert split(rows, 0.0, seed=1) == (rows, [])


@given(st.binary(max_size=200) | st.from_regex(rb'\{"prompt": .{0,80}\}', fullmatch=True))
@settings(max_examples=60, deadline=None)
def test_any_bytes_give_rows_or_problems_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "p.jsonl"
    path.write_bytes(raw)
    try:
        rows, report = read_preferences(path)
    except PomonaError:
        return
    assert len(rows) + len(report.problems) >= report.read


def test_the_level_of_a_public_pair_depends_on_both_texts_alike() -> None:
    assert assigned_level("a b c", "x y z") == LEVELS[0] == assigned_level("x y z", "a b c")
    assert assigned_level("the cat sat down", "the cat sat up") == LEVELS[3]


@pytest.mark.data
def test_public_pairs_are_sound_and_have_levels() -> None:
    for name, least in (("hh_rlhf", 2300), ("dpo_pairs", 290)):
        rows, report = public_preferences(name)
        assert len(rows) >= least and not report.levels.get("")
        assert set(report.levels) == set(LEVELS)
        assert all(row.prompt[-1]["role"] == "user" and row.chosen.text for row in rows)
        assert len({row.line for row in rows}) == len(rows)


def test_a_public_set_that_is_not_there_or_of_another_form_is_told(tmp_path: Path) -> None:
    with pytest.raises(PomonaError, match="no preference set of that name"):
        public_preferences("nothing")
    with pytest.raises(PomonaError, match=r"harmless-base.test.jsonl.gz: cannot be read"):
        public_preferences("hh_rlhf", tmp_path)
    path = tmp_path / "hh_rlhf" / "harmless-base.test.jsonl.gz"
    path.parent.mkdir()
    path.write_bytes(gzip.compress(b'{"chosen": 1}\n'))
    with pytest.raises(PomonaError, match="line 1: has another form"):
        public_preferences("hh_rlhf", tmp_path)
    both = "\n\nHuman: hi\n\nAssistant: "
    path.write_bytes(gzip.compress(json.dumps({"chosen": both + "yes", "rejected": both + "no"}).encode()))
    [row], _ = public_preferences("hh_rlhf", tmp_path)
    assert (row.prompt, row.chosen.text, row.rejected.text) == (
        ({"role": "user", "content": "hi"},),
        "yes",
        "no",
    )


def test_the_questions_and_levels_are_those_of_the_report() -> None:
    assert QUESTIONS == ("instruction_following", "conciseness", "truthfulness", "harmlessness")
    assert len(LEVELS) == 4
