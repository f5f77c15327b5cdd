"""Training rows: what is read, what is refused with its line, what is merely said."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from adapt_samples import chat, write_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pomona.adapters import data
from pomona.adapters.data import BAD, KINDS, read_rows, scripts, shared_instructions
from pomona.errors import PomonaError


@pytest.fixture
def kinds_of(tmp_path: Path) -> Callable[..., list[tuple[str, int]]]:
    """(kind, line) of every problem of these rows."""

    def read(*rows: Any) -> list[tuple[str, int]]:
        _, report = read_rows(write_rows(tmp_path / "rows.jsonl", rows))
        return [(problem.kind, problem.line) for problem in report.problems]

    return read


# --- what is read


def test_messages_and_prompts_with_completions_are_the_same_rows(tmp_path: Path) -> None:
    user, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    system = {"role": "system", "content": "s"}
    path = write_rows(
        tmp_path / "rows.jsonl",
        [
            {"messages": [user, answer]},
            {"prompt": "a", "completion": "b"},
            {"prompt": [user], "completion": [answer]},
            {"prompt": [system, user], "completion": "b", "license": "MIT", "source": "us"},
            {"messages": [system, user, answer], "prompt": None},
        ],
    )
    rows, report = read_rows(path)
    assert [row.messages for row in rows[:3]] == [(user, answer)] * 3
    assert [row.messages for row in rows[3:]] == [(system, user, answer)] * 2
    assert (rows[3].license, rows[3].source) == ("MIT", "us")
    assert report.licenses == {"": 4, "MIT": 1}
    assert report.counts() == {"duplicate": 3}
    assert report.good == 5


def test_blank_lines_a_byte_order_mark_and_a_missing_last_line_break_do_no_harm(tmp_path: Path) -> None:
    line = json.dumps(chat("a", "b")).encode()
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\n  \n" + json.dumps(chat("c", "d")).encode())
    rows, report = read_rows(path)
    assert [row.line for row in rows] == [1, 4]
    assert not report.problems


def test_parquet_holds_the_same_rows(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{**chat("a", "b", system="s"), "license": "MIT"}, {**chat("c", "d"), "license": None}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    found, report = read_rows(tmp_path / "rows.parquet")
    expected, _ = read_rows(write_rows(tmp_path / "rows.jsonl", rows))
    assert found == expected and report.read == 2

    parquet.write_table(
        pyarrow.Table.from_pylist([{"messages": [1.0, float("nan")]}]), tmp_path / "nan.parquet"
    )
    found, report = read_rows(tmp_path / "nan.parquet")
    assert not found and report.counts() == {"wrong schema": 1}


def test_parquet_without_pyarrow_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(PomonaError, match=r"pip install 'pomona\[train\]'"):
        read_rows(tmp_path / "rows.parquet")


# --- what is refused, with its line

GOOD = chat("hello", "good day")


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (b'{"messages": "\xff"}', "not UTF-8"),
        ("{", "not JSON"),
        ("[1]", "not JSON"),
        ('{"messages": NaN}', "not JSON"),
        ('{"a": 1, "a": 2}', "not JSON"),
        ('{"prompt": "\\ud800", "completion": "x"}', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"messages": ' + "[" * 50_000 + "]" * 50_000 + "}", "not JSON"),
        ({"text": "a"}, "wrong schema"),
        ({"prompt": "a"}, "wrong schema"),
        ({"messages": 5}, "wrong schema"),
        ({"messages": ["a"]}, "wrong schema"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "wrong schema"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "wrong schema"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": []}]}, "wrong schema"),
        ({**GOOD, "completion": "b"}, "wrong schema"),
        ({**GOOD, "tools": []}, "wrong schema"),
        ({**GOOD, "license": 5}, "wrong schema"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "wrong schema"),
        ({"messages": [*GOOD["messages"], {"role": "system", "content": "a"}]}, "wrong schema"),
        ({"messages": [GOOD["messages"][0]] * 1000}, "wrong schema"),
        ({"messages": []}, "empty"),
        ({"prompt": "a", "completion": " \n"}, "empty"),
        ({"messages": [{"role": "user"}, GOOD["messages"][1]]}, "empty"),
        (chat("a", "b", "c"), "last message"),
        (chat("a"), "last message"),
    ],
)
def test_a_bad_row_is_told_by_kind_and_line_and_leaves_the_others(
    kinds_of: Callable[..., list[tuple[str, int]]], row: Any, kind: str
) -> None:
    assert kind in BAD
    assert kinds_of(GOOD, row, chat("x", "y")) == [(kind, 2)]


def test_a_line_is_bounded_and_the_next_one_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "MAX_LINE_BYTES", 100)
    path = write_rows(tmp_path / "rows.jsonl", [GOOD, chat("x" * 500, "y"), chat("x", "y")])
    rows, report = read_rows(path)
    assert [row.line for row in rows] == [1, 3]
    assert [(p.kind, p.line) for p in report.problems] == [("line too long", 2)]


def test_what_is_no_file_of_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but no more")
    (tmp_path / "empty.jsonl").write_bytes(b"\n\n")
    (tmp_path / "a.csv").write_bytes(b"a,b")
    for name, words in (
        ("a.csv", "neither .jsonl nor .parquet"),
        ("empty.jsonl", "holds no row"),
        ("missing.jsonl", "cannot be read"),
        ("a.parquet", "no sound Parquet"),
    ):
        with pytest.raises(PomonaError, match=words):
            read_rows(tmp_path / name)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["messages", "prompt", "completion", "role", "content", "license"]), inner
            )
        ),
        max_leaves=12,
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_bytes_give_rows_or_problems(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "fuzz.jsonl"
    path.write_bytes(raw + b"\n" + json.dumps(GOOD).encode())
    rows, report = read_rows(path)
    assert report.read == len(rows) + len(report.bad)
    assert all(row.messages[-1]["role"] == "assistant" for row in rows)


# --- what is merely said


def test_rows_that_stand_there_twice_are_said_and_kept(
    kinds_of: Callable[..., list[tuple[str, int]]],
) -> None:
    assert kinds_of(GOOD, chat("other", "row"), chat("Hello ", "good  day")) == [("duplicate", 3)]


def test_other_and_mixed_scripts_are_said(kinds_of: Callable[..., list[tuple[str, int]]]) -> None:
    assert kinds_of(
        chat("hello you", "good day"),
        chat("another one", "why not"),
        chat("привет мой друг", "добрый день"),
        chat("good day means", "добрый день"),
    ) == [("mixed scripts", 4), ("other script", 3)]


def test_scripts_are_shares_of_letters() -> None:
    assert scripts("abc, 123") == {"LATIN": 1.0}
    assert scripts("ab дж") == {"LATIN": 0.5, "CYRILLIC": 0.5}
    assert scripts("日本のカタ") == {"CJK": 1.0}
    assert scripts("12 + 3!") == {}


def test_columns_that_are_not_read_are_named(kinds_of: Callable[..., list[tuple[str, int]]]) -> None:
    assert kinds_of({**GOOD, "id": 5}) == [("unread column", 1)]


def test_the_report_counts_and_names_lines(tmp_path: Path) -> None:
    rows = [GOOD, *["{"] * 30, GOOD]
    _, report = read_rows(write_rows(tmp_path / "rows.jsonl", rows))
    table = {what: (count, where) for what, count, where in report.table()}
    assert table["rows read"] == ("32", "") and table["rows that can be used"] == ("2", "")
    assert table["bad: not JSON"] == ("30", "lines 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 20 more")
    assert table["duplicate"] == ("1", "line 32")
    found = json.loads(json.dumps(report.to_json()))
    assert (found["rows"], found["good"], found["bad"]) == (32, 2, 30)
    assert [p["kind"] for p in found["problems"]] == ["not JSON", "duplicate"]
    assert report.first_bad().startswith("line 2: not valid JSON")
    assert set(report.counts()) <= set(KINDS)


def test_instructions_are_what_all_rows_share(tmp_path: Path) -> None:
    same = [chat("a", "b", system="s"), chat("c", "d", system="s")]
    rows, _ = read_rows(write_rows(tmp_path / "rows.jsonl", [*same, chat("e", "f")]))
    assert shared_instructions(rows[:2]) == "s"
    assert shared_instructions(rows) is None
