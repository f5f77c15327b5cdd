"""What the commands share: sizes, JSON, tables, progress, text files."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest

from pomona.cli.common import (
    ProgressReporter,
    directory_bytes,
    format_bytes,
    has_colour,
    print_json,
    print_pairs,
    print_table,
    read_text_file,
)
from pomona.errors import PomonaError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (812, "812 B"),
        (999, "999 B"),
        (1_000, "1 kB"),
        (98_362_432, "98.4 MB"),
        (269_060_552, "269 MB"),
        (999_600_000, "1 GB"),
        (1_270_000_000, "1.27 GB"),
        (3_000_000_000_000, "3 TB"),
    ],
)
def test_sizes_have_three_digits_and_decimal_units(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_directory_bytes_counts_the_files_below(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_bytes(b"45")
    assert directory_bytes(tmp_path) == 5


def test_json_has_null_where_it_has_no_number_and_keeps_characters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_json({"a": math.nan, "b": [math.inf, 1.5], "c": {"d": (1, Path("x"))}, "e": "Käse", "f": None})
    out = capsys.readouterr().out
    assert json.loads(out) == {"a": None, "b": [None, 1.5], "c": {"d": [1, "x"]}, "e": "Käse", "f": None}
    assert "Käse" in out


def test_a_table_for_a_pipe_is_plain_aligned_text() -> None:
    stream = io.StringIO()
    print_table(("name", "bytes"), [("a", "1"), ("long name", "1,234")], stream=stream)
    assert stream.getvalue() == "name       bytes\na              1\nlong name  1,234\n"


def test_a_table_for_a_terminal_shows_brackets_as_they_are() -> None:
    stream = Terminal()
    print_table(("name", "bytes"), [("model[0]", "[red]7")], stream=stream)
    assert "model[0]" in stream.getvalue()
    assert "[red]7" in stream.getvalue()


def test_pairs_stand_under_each_other() -> None:
    stream = io.StringIO()
    print_pairs([("model", "x"), ("", "y")], stream=stream)
    assert stream.getvalue() == "model  x\n       y\n"


@pytest.mark.parametrize(
    ("variables", "colour"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colour_is_for_terminals_that_want_it(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], colour: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert has_colour(Terminal()) is colour
    assert has_colour(io.StringIO()) is False


def test_progress_without_a_terminal_is_one_line_per_label(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressReporter() as progress:
        for label in ("calibrate", "palettise"):
            for done in range(100):
                progress.update(label, done, 100)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "calibrate ...\npalettise ...\n")


def test_progress_on_a_terminal_is_a_bar_and_ends_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with ProgressReporter() as progress:
        progress.update("calibrate [x]", 1, 4)
        progress.update("calibrate [x]", 4, 4)
        progress.update("unknown length", 1, 0)
    assert "calibrate [x]" in terminal.getvalue()
    assert "100%" in terminal.getvalue()


def test_progress_stops_when_the_work_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", Terminal())
    reporter = ProgressReporter()

    def work() -> None:
        with reporter:
            reporter.update("write", 1, 4)
            raise PomonaError("disk full")

    with pytest.raises(PomonaError, match="disk full"):
        work()
    assert reporter._bars is not None
    assert reporter._bars.finished or not reporter._bars.live.is_started


def test_a_text_file_is_read_as_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.txt").write_bytes("Grüße\n".encode())
    assert read_text_file(tmp_path / "t.txt") == "Grüße\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("piped"))
    assert read_text_file(Path("-")) == "piped"


def test_an_unreadable_text_file_is_one_line_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"Gr\xfc\xdfe")
    with pytest.raises(PomonaError, match=r"latin\.txt: not UTF-8 text \(byte 2\)"):
        read_text_file(tmp_path / "latin.txt")
    with pytest.raises(PomonaError, match=r"none\.txt: cannot be read"):
        read_text_file(tmp_path / "none.txt")
    with pytest.raises(PomonaError, match="cannot be read"):
        read_text_file(tmp_path)
