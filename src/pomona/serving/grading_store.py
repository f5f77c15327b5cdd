"""Gradings by people in a SQLite file: projects, what is to be graded, who took what, and what they said.

    store = GradingStore(Path("grading.db"))
    project = store.new_project("compressed or not", "pairs", "4 bits", "16 bits", overlap=2)
    store.add_items(project.id, items)
    task = store.take(project.id, "anna")             # sides are shuffled here, for every grader anew
    store.grade(task.item.id, "anna", {...})

Each grader has a queue of their own. `overlap` graders look at every item: what others have graded comes
first, so that agreement can soon be told; beyond that the order is the grader's own.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pomona.errors import PomonaError
from pomona.evaluation.side_by_side import GradedItem, PairGrading, Side, SummaryGrading
from pomona.owned_database import OwnedDatabase

VERSION = 1
HOLD_SECONDS = 3600.0  # after which what was taken and not graded is given to others too
MAX_ITEMS = 20_000  # of a project
Kind = Literal["pairs", "summaries"]

_SCHEMA = """
CREATE TABLE projects (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, kind TEXT NOT NULL CHECK (kind IN ('pairs', 'summaries')),
    a TEXT NOT NULL, b TEXT NOT NULL, overlap INTEGER, created REAL NOT NULL
) STRICT;
CREATE TABLE items (
    id TEXT PRIMARY KEY, project TEXT NOT NULL REFERENCES projects(id) ON DELETE CASCADE,
    key TEXT NOT NULL, prompt TEXT NOT NULL, a TEXT NOT NULL, b TEXT, system TEXT NOT NULL,
    license TEXT, source TEXT, UNIQUE (project, key)
) STRICT;
CREATE TABLE gradings (
    item TEXT NOT NULL REFERENCES items(id) ON DELETE CASCADE, grader TEXT NOT NULL,
    left TEXT NOT NULL CHECK (left IN ('a', 'b')), taken REAL NOT NULL,
    answer TEXT, skipped INTEGER NOT NULL DEFAULT 0, graded REAL, PRIMARY KEY (item, grader)
) STRICT;
CREATE INDEX items_of_project ON items(project)
"""
_DONE = "(g.answer IS NOT NULL OR g.skipped)"


@dataclass(frozen=True)
class Project:
    """a, b: what the sides are, which graders are not told. overlap: graders per item; None: all of them.
    items, gradings: how many there are."""

    id: str
    name: str
    kind: Kind
    a: str
    b: str
    overlap: int | None
    created: float
    items: int = 0
    gradings: int = 0


@dataclass(frozen=True)
class Task:
    """An item that a grader has taken. left: the side that stands there for this grader."""

    id: str
    project: str
    item: GradedItem
    left: Side


@dataclass(frozen=True)
class Standing:
    """How far a grader is: graded or skipped, and what could still be taken."""

    done: int
    open: int


class GradingStore:
    """PomonaError for a file that is none of ours, or that cannot be written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open = OwnedDatabase(
            path, schema=_SCHEMA, version=VERSION, holds="gradings", key="grading_db"
        ).open

    def new_project(self, name: str, kind: Kind, a: str, b: str, overlap: int | None) -> Project:
        project = Project(secrets.token_hex(8), name, kind, a, b, overlap, time.time())
        with self._open() as db:
            db.execute(
                "INSERT INTO projects VALUES (?, ?, ?, ?, ?, ?, ?)",
                (project.id, name, kind, a, b, overlap, project.created),
            )
        return project

    def projects(self) -> list[Project]:
        """The newest first."""
        with self._open() as db:
            rows = db.execute(
                "SELECT p.*, (SELECT count(*) FROM items i WHERE i.project = p.id), (SELECT count(*) FROM "
                "gradings g JOIN items i ON i.id = g.item WHERE i.project = p.id AND g.answer IS NOT NULL) "
                "FROM projects p ORDER BY p.created DESC, p.rowid DESC"
            ).fetchall()
        return [Project(*row) for row in rows]

    def project(self, project: str) -> Project | None:
        return next((found for found in self.projects() if found.id == project), None)

    def delete_project(self, project: str) -> bool:
        """With its items and gradings. False: there was none."""
        with self._open() as db:
            return db.execute("DELETE FROM projects WHERE id = ?", (project,)).rowcount > 0

    def add_items(self, project: str, items: Sequence[GradedItem]) -> int:
        """All or none. PomonaError for a key that the project has, or too many."""
        with self._open() as db:
            known = {row[0] for row in db.execute("SELECT key FROM items WHERE project = ?", (project,))}
            if len(known) + len(items) > MAX_ITEMS:
                raise PomonaError(f"a project holds {MAX_ITEMS:,} items at most; begin another one")
            for item in items:
                if item.key in known:
                    raise PomonaError(f"id {item.key}: the project has such an item; give each its own id")
                known.add(item.key)
                db.execute(
                    "INSERT INTO items VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        *(secrets.token_hex(8), project, item.key, json.dumps(list(item.prompt))),
                        *(item.a, item.b, item.system, item.license, item.source),
                    ),
                )
        return len(items)

    def take(self, project: Project, grader: str) -> tuple[Task | None, Standing]:
        """What the grader is to look at: what was taken and not graded yet, else something new. None: there
        is nothing left."""
        with self._open() as db:
            if not db.in_transaction:
                db.execute("BEGIN IMMEDIATE")  # two graders do not take the last place of an item
            own = self._own(db, project, grader)
            free = self._free(db, project, own)
            item = next((item for item, done in own.items() if not done), None)
            if item is None and free:
                item = min(free, key=lambda one: (-free[one], _shuffled(grader, one)))
                del free[item]
                left = secrets.choice(("a", "b"))
                db.execute(
                    "INSERT INTO gradings (item, grader, left, taken) VALUES (?, ?, ?, ?)",
                    (item, grader, left, time.time()),
                )
            task = None if item is None else self._task(db, item, grader)
        return task, Standing(sum(map(bool, own.values())), len(free) + (task is not None))

    def standing(self, project: Project, grader: str) -> Standing:
        with self._open() as db:
            own = self._own(db, project, grader)
            done = sum(map(bool, own.values()))
            return Standing(done, len(own) - done + len(self._free(db, project, own)))

    def _own(self, db: Any, project: Project, grader: str) -> dict[str, int]:
        """item -> whether it is done, of what the grader has taken."""
        return dict(
            db.execute(
                f"SELECT g.item, {_DONE} FROM gradings g JOIN items i ON i.id = g.item "
                "WHERE i.project = ? AND g.grader = ? ORDER BY g.taken",
                (project.id, grader),
            )
        )

    def _free(self, db: Any, project: Project, own: dict[str, int]) -> dict[str, int]:
        """item -> graders that it has, of items with a place for one more."""
        rows = db.execute(
            "SELECT i.id, (SELECT count(*) FROM gradings g WHERE g.item = i.id AND NOT g.skipped AND "
            "(g.answer IS NOT NULL OR g.taken > ?)) FROM items i WHERE i.project = ?",
            (time.time() - HOLD_SECONDS, project.id),
        )
        most = project.overlap
        return {item: count for item, count in rows if item not in own and (most is None or count < most)}

    def task(self, item: str, grader: str) -> Task | None:
        """What the grader has taken, graded or not."""
        with self._open() as db:
            return self._task(db, item, grader)

    def _task(self, db: Any, item: str, grader: str) -> Task | None:
        row = db.execute(
            "SELECT i.id, i.project, i.prompt, i.a, i.b, g.left FROM items i JOIN gradings g "
            "ON g.item = i.id WHERE i.id = ? AND g.grader = ?",
            (item, grader),
        ).fetchone()
        if row is None:
            return None
        identity, project, prompt, a, b, left = row
        return Task(identity, project, GradedItem(identity, tuple(json.loads(prompt)), a, b), left)

    def grade(self, item: str, grader: str, answer: dict[str, Any] | None) -> bool:
        """answer: a grading's JSON, None to skip the item. What was said before is replaced. False: the
        grader has not taken the item."""
        with self._open() as db:
            changed = db.execute(
                "UPDATE gradings SET answer = ?, skipped = ?, graded = ? WHERE item = ? AND grader = ?",
                (
                    None if answer is None else json.dumps(answer),
                    answer is None,
                    time.time(),
                    item,
                    grader,
                ),
            ).rowcount
        return changed > 0

    def items(self, project: str) -> list[GradedItem]:
        """In the order in which they came."""
        with self._open() as db:
            rows = db.execute(
                "SELECT id, key, prompt, a, b, system, license, source FROM items WHERE project = ? "
                "ORDER BY rowid",
                (project,),
            ).fetchall()
        return [
            GradedItem(identity, tuple(json.loads(prompt)), a, b, license, source, key, system)
            for identity, key, prompt, a, b, system, license, source in rows
        ]

    def pair_gradings(self, project: str) -> list[PairGrading]:
        return [
            PairGrading(item, grader, said["verdict"], said["level"], said["a"], said["b"], left)
            for item, grader, left, said, _ in self._gradings(project)
        ]

    def summary_gradings(self, project: str) -> list[SummaryGrading]:
        return [
            SummaryGrading(item, grader, system, said["grades"])
            for item, grader, _, said, system in self._gradings(project)
        ]

    def _gradings(self, project: str) -> list[tuple[str, str, Side, dict[str, Any], str]]:
        with self._open() as db:
            rows = db.execute(
                "SELECT g.item, g.grader, g.left, g.answer, i.system FROM gradings g JOIN items i "
                "ON i.id = g.item WHERE i.project = ? AND g.answer IS NOT NULL ORDER BY i.rowid, g.grader",
                (project,),
            ).fetchall()
        return [(item, grader, left, json.loads(said), system) for item, grader, left, said, system in rows]


def _shuffled(grader: str, item: str) -> bytes:
    return hashlib.sha256(f"{grader}\0{item}".encode()).digest()
