"""A SQLite file of our own: made once however many begin it, private, all or nothing, never a foreign one."""

from __future__ import annotations

import functools
import sqlite3
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pomona.errors import PomonaError
from pomona.owned_database import OwnedDatabase


def database(path: Path, version: int = 1) -> OwnedDatabase:
    schema = "CREATE TABLE words (word TEXT) STRICT; CREATE TABLE other (number INTEGER) STRICT;"
    return OwnedDatabase(path, schema=schema, version=version, holds="words", key="--words")


def add(path: Path, word: str) -> None:
    with database(path).open() as db:
        db.execute("INSERT INTO words VALUES (?)", (word,))


def words(path: Path) -> list[str]:
    with database(path).open() as db:
        return [word for (word,) in db.execute("SELECT word FROM words ORDER BY word")]


class Overtaken(sqlite3.Connection):
    """Calls `then` before the statement with the number `before`, once."""

    before: ClassVar[int]
    then: ClassVar[Callable[[], None] | None]
    statements = 0

    def execute(self, *statement: Any) -> sqlite3.Cursor:
        then = Overtaken.then
        if then is not None and self.statements == Overtaken.before:
            Overtaken.then = None
            then()
        self.statements += 1
        return super().execute(*statement)


@pytest.mark.parametrize("before", [0, 1, 2])
def test_another_may_make_the_tables_between_any_two_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    path = tmp_path / "words.db"
    Overtaken.before, Overtaken.then = before, lambda: add(path, "a")
    monkeypatch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=Overtaken))
    add(path, "b")
    assert Overtaken.then is None and words(path) == ["a", "b"]


def test_many_threads_begin_one_file(tmp_path: Path) -> None:
    failed: list[BaseException] = []

    def work(path: Path, word: str, start: threading.Barrier) -> None:
        start.wait()
        try:
            add(path, word)
        except BaseException as error:
            failed.append(error)

    for number in range(10):
        path, start = tmp_path / f"{number}.db", threading.Barrier(8)
        threads = [threading.Thread(target=work, args=(path, word, start)) for word in "abcdefgh"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == [] and words(path) == list("abcdefgh")


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    add(tmp_path / "deep" / "words.db", "a")
    assert stat.S_IMODE((tmp_path / "deep" / "words.db").stat().st_mode) == 0o600


def test_an_error_takes_back_all_that_was_done(tmp_path: Path) -> None:
    path = tmp_path / "words.db"
    add(path, "a")
    with pytest.raises(ZeroDivisionError), database(path).open() as db:
        db.execute("INSERT INTO words VALUES ('b')")
        raise ZeroDivisionError
    assert words(path) == ["a"]


def foreign_text(path: Path) -> None:
    path.write_text("not a database, but long enough to be looked at " * 40)


def foreign_tables(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE mine (x)")


def newer_version(path: Path) -> None:
    with database(path, version=2).open():
        pass


@pytest.mark.parametrize("make", [foreign_text, foreign_tables, newer_version])
def test_a_foreign_file_is_refused_and_left_alone(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "foreign.db"
    make(path)
    before = path.read_bytes()
    with pytest.raises(PomonaError, match="name another file with --words"):
        add(path, "a")
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_folder_in_place_of_the_file_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PomonaError, match="cannot keep words there"):
        add(tmp_path, "a")
