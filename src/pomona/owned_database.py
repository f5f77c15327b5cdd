"""A SQLite file that belongs to its owner alone: made with its tables when it is first opened.

Every operation opens the file for itself, so that any thread may call; the file can be copied while nothing
runs.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from pomona.errors import PomonaError


class OwnedDatabase:
    """schema: CREATE statements. version: of the schema, kept in the file. holds: what is in it, and key: the
    setting or the option that names it, for messages."""

    def __init__(self, path: Path, *, schema: str, version: int, holds: str, key: str) -> None:
        self.path = path
        self._schema, self._version, self._holds, self._key = schema, version, holds, key

    @contextlib.contextmanager
    def open(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it or nothing. PomonaError for a file that is none of ours, or that cannot
        be written."""
        try:
            if not self.path.exists():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))  # prompts are private
            with contextlib.closing(sqlite3.connect(self.path, timeout=10)) as db:
                db.execute("PRAGMA foreign_keys = ON")
                with db:
                    self._prepare(db)
                    yield db
        except (sqlite3.Error, OSError) as error:
            raise PomonaError(
                f"{self.path}: cannot keep {self._holds} there ({error}); name another file with {self._key}"
            ) from error

    def _prepare(self, db: sqlite3.Connection) -> None:
        if _version(db) == self._version:
            return
        # Of several that find a new file one makes the tables. The others wait for it here, before they look
        # at what is in the file: a version read before and tables counted after it would not belong together.
        db.execute("BEGIN IMMEDIATE")
        version = _version(db)
        if version == self._version:
            return
        if version != 0 or db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise PomonaError(
                f"{self.path}: holds no {self._holds} of this version; name another file with {self._key}"
            )
        for statement in self._schema.split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {self._version}")


def _version(db: sqlite3.Connection) -> int:
    found: int = db.execute("PRAGMA user_version").fetchone()[0]
    return found
