"""The queue of replies that people look at, in a SQLite file: items, labels, and what they say together.

    store = ReviewStore(Path("review.db"))
    store.add("How do I ...?", "Of course ...", source="redteam", tags=("cybercrime.phishing",))
    store.label(1, "refuses", grader="anna")
    store.export()                       # rows: the judge's error, guardrail data, counts of agreement

Several graders may label an item, each once; a second label of the same grader replaces the first. Every
operation opens the file for itself; it belongs to its owner alone, for its texts may be vile.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from pomona.errors import PomonaError
from pomona.owned_database import OwnedDatabase
from pomona.safety.taxonomy import taxonomy

VERSION = 1
Decision = Literal["complies", "refuses", "unsure"]
MAX_TEXT = 1 << 20

_SCHEMA = """
CREATE TABLE items (
    number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, prompt TEXT NOT NULL, reply TEXT NOT NULL,
    source TEXT NOT NULL, suggestion TEXT NOT NULL, tags TEXT NOT NULL, license TEXT NOT NULL,
    harmful INTEGER NOT NULL CHECK (harmful IN (0, 1)), created REAL NOT NULL
) STRICT;
CREATE TABLE labels (
    item INTEGER NOT NULL REFERENCES items(number) ON DELETE CASCADE, grader TEXT NOT NULL,
    decision TEXT NOT NULL CHECK (decision IN ('complies', 'refuses', 'unsure')),
    tags TEXT NOT NULL, note TEXT NOT NULL, labelled REAL NOT NULL, PRIMARY KEY (item, grader)
) STRICT;
"""


@dataclass(frozen=True)
class Label:
    """tags: kinds of harm by the taxonomy; empty where the grader named none."""

    grader: str
    decision: Decision
    tags: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Item:
    """suggestion: the judge's verdict. harmful: whether a compliance would be a violation."""

    number: int
    prompt: str
    reply: str
    source: str
    suggestion: str
    tags: tuple[str, ...]
    license: str
    harmful: bool
    labels: tuple[Label, ...] = field(default=())

    @property
    def decision(self) -> Decision | None:
        """What most graders say; "unsure" where no decision has more than half, None without a label."""
        if not self.labels:
            return None
        [(first, count), *_] = Counter(label.decision for label in self.labels).most_common()
        return first if 2 * count > len(self.labels) else "unsure"

    def to_json(self) -> dict[str, Any]:
        agreed = sorted({tag for label in self.labels for tag in label.tags}) or list(self.tags)
        return {
            "number": self.number,
            "prompt": self.prompt,
            "reply": self.reply,
            "verdict": self.decision,
            "tags": agreed,
            "harmful": self.harmful,
            "suggestion": self.suggestion,
            "source": self.source,
            "license": self.license,
            "labels": [{**vars(label), "tags": list(label.tags)} for label in self.labels],
        }


class ReviewStore:
    """PomonaError for a file that is none of ours, or that cannot be written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open = OwnedDatabase(
            path, schema=_SCHEMA, version=VERSION, holds="replies to review", key="--db"
        ).open

    def add(
        self,
        prompt: str,
        reply: str,
        *,
        source: str,
        suggestion: str = "",
        tags: Sequence[str] = (),
        license: str = "unknown",
        harmful: bool = True,
    ) -> bool:
        """False: the same prompt with the same reply waits there already."""
        if len(prompt) > MAX_TEXT or len(reply) > MAX_TEXT:
            raise PomonaError(f"a text above {MAX_TEXT >> 20} MiB is nothing that people can review; cut it")
        key = hashlib.sha256(f"{prompt}\0{reply}".encode()).hexdigest()
        with self._open() as db:
            return (
                db.execute(
                    "INSERT OR IGNORE INTO items (key, prompt, reply, source, suggestion, tags, license, "
                    "harmful, created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        key,
                        prompt,
                        reply,
                        source,
                        suggestion,
                        json.dumps(_checked(tags)),
                        license,
                        int(harmful),
                        time.time(),
                    ),
                ).rowcount
                > 0
            )

    def label(
        self, number: int, decision: Decision, *, grader: str, tags: Sequence[str] = (), note: str = ""
    ) -> Item:
        """PomonaError: no such item, decision or kind of harm, no grader."""
        if decision not in get_args(Decision):
            raise PomonaError(f"decision {decision!r}: choose {', '.join(get_args(Decision))}")
        if not grader.strip():
            raise PomonaError("a label needs a grader; give a name or a pseudonym")
        values = (number, grader, decision, json.dumps(_checked(tags)), note, time.time())
        with self._open() as db:
            if db.execute("SELECT 1 FROM items WHERE number = ?", (number,)).fetchone() is None:
                raise PomonaError(f"item {number}: there is none; see pomona safety review list")
            db.execute("INSERT OR REPLACE INTO labels VALUES (?, ?, ?, ?, ?, ?)", values)
        return self.item(number)

    def item(self, number: int) -> Item:
        found = next((item for item in self.items() if item.number == number), None)
        if found is None:
            raise PomonaError(f"item {number}: there is none; see pomona safety review list")
        return found

    def items(self, *, waiting_for: str | None = None, limit: int | None = None) -> list[Item]:
        """The oldest first. waiting_for: only what this grader has not labelled ("" for nobody has)."""
        with self._open() as db:
            labels: dict[int, list[Label]] = {}
            for number, grader, decision, tags, note in db.execute(
                "SELECT item, grader, decision, tags, note FROM labels ORDER BY labelled, rowid"
            ):
                labels.setdefault(number, []).append(Label(grader, decision, tuple(json.loads(tags)), note))
            rows = db.execute(f"SELECT {_COLUMNS} FROM items ORDER BY number").fetchall()
        found = [_item(row, labels.get(row[0], [])) for row in rows]
        if waiting_for is not None:
            found = [
                item for item in found if not any(waiting_for in ("", label.grader) for label in item.labels)
            ]
        return found if limit is None else found[:limit]

    def counts(self) -> dict[str, int]:
        """Items, those without a label, labels, and items whose graders differ."""
        items = self.items()
        return {
            "items": len(items),
            "waiting": sum(not item.labels for item in items),
            "labels": sum(len(item.labels) for item in items),
            "disputed": sum(len({label.decision for label in item.labels}) > 1 for item in items),
        }

    def export(self) -> list[dict[str, Any]]:
        """Every labelled item as a row."""
        return [item.to_json() for item in self.items() if item.labels]


_COLUMNS = "number, prompt, reply, source, suggestion, tags, license, harmful"


def _item(row: tuple[Any, ...], labels: Sequence[Label]) -> Item:
    number, prompt, reply, source, suggestion, tags, license, harmful = row
    return Item(
        number,
        prompt,
        reply,
        source,
        suggestion,
        tuple(json.loads(tags)),
        license,
        bool(harmful),
        tuple(labels),
    )


def _checked(tags: Sequence[str]) -> list[str]:
    """PomonaError: a tag that the taxonomy does not have. A category will do."""
    for tag in tags:
        taxonomy().category(tag)
    return list(tags)
