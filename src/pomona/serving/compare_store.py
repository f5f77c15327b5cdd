"""Blind comparisons in a SQLite file: sessions, pairs of answers, votes, and what the votes say.

    store = CompareStore(Path("compare.db"))
    session = store.new_session("tone", config_a, config_b)
    pair = store.add_pair(session.id, prompt, answer_a, answer_b)     # sides are shuffled here
    store.vote(pair.id, "left")
    store.results(session.id).a_wins

A pair is voted on once: after the vote its names are known. Every operation opens the file for itself, so
that any thread may call; the file can be copied while nothing runs, and belongs to its owner alone.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pomona.errors import PomonaError

VERSION = 1
Side = Literal["a", "b"]
Verdict = Literal["a", "b", "tie"]
Vote = Literal["left", "right", "tie"]
Z95 = 1.959963984540054  # the normal quantile of 97.5%

_SCHEMA = """
CREATE TABLE sessions (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, model TEXT NOT NULL, a TEXT NOT NULL, b TEXT NOT NULL,
    created REAL NOT NULL
) STRICT;
CREATE TABLE pairs (
    id TEXT PRIMARY KEY, session TEXT NOT NULL REFERENCES sessions(id) ON DELETE CASCADE,
    prompt TEXT NOT NULL, a TEXT NOT NULL, b TEXT NOT NULL,
    left TEXT NOT NULL CHECK (left IN ('a', 'b')),
    verdict TEXT CHECK (verdict IN ('a', 'b', 'tie')),
    created REAL NOT NULL, voted REAL
) STRICT;
CREATE INDEX pairs_of_session ON pairs(session, created);
"""


@dataclass(frozen=True)
class Session:
    """a, b: the two configurations, as JSON values. pairs, votes: how many there are."""

    id: str
    name: str
    model: str
    a: dict[str, Any]
    b: dict[str, Any]
    created: float
    pairs: int = 0
    votes: int = 0


@dataclass(frozen=True)
class Answer:
    """One side's answer, and what it took."""

    text: str
    finish_reason: str
    tokens: int
    seconds: float
    seed: int
    adapter: str | None = None

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class Pair:
    """left: which of the two stands on the left. verdict: None until the vote."""

    id: str
    session: str
    prompt: str
    a: Answer
    b: Answer
    left: Side
    verdict: Verdict | None = None

    def at(self, place: Literal["left", "right"]) -> tuple[Side, Answer]:
        side: Side = self.left if place == "left" else ("b" if self.left == "a" else "a")
        return side, self.a if side == "a" else self.b


@dataclass(frozen=True)
class Share:
    """A part of the votes with its interval of 95% (Wilson 1927, without continuity correction)."""

    count: int
    of: int
    low: float
    high: float

    @classmethod
    def wilson(cls, count: int, of: int) -> Share:
        if of == 0:
            return cls(0, 0, 0.0, 1.0)
        p, z2 = count / of, Z95 * Z95
        centre = (p + z2 / (2 * of)) / (1 + z2 / of)
        half = Z95 * math.sqrt(p * (1 - p) / of + z2 / (4 * of * of)) / (1 + z2 / of)
        # At 0 and at all the interval ends there; rounding must not leave it a little inside.
        return cls(
            count,
            of,
            0.0 if count == 0 else max(centre - half, 0.0),
            1.0 if count == of else min(centre + half, 1.0),
        )

    @property
    def value(self) -> float | None:
        return self.count / self.of if self.of else None

    def to_json(self) -> dict[str, Any]:
        return {"count": self.count, "of": self.of, "value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Results:
    """Wins, ties and losses as parts of all votes; `decided` is A's part of the votes that are no tie."""

    a_wins: Share
    ties: Share
    b_wins: Share
    decided: Share
    open: int  # pairs without a vote

    def to_json(self) -> dict[str, Any]:
        names = ("a_wins", "ties", "b_wins", "decided")
        return {
            "votes": self.ties.of,
            "open": self.open,
            "interval": "Wilson, 95%",
            **{name: getattr(self, name).to_json() for name in names},
        }


class CompareStore:
    """PomonaError for a file that is none of ours, or that cannot be written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def new_session(self, name: str, model: str, a: dict[str, Any], b: dict[str, Any]) -> Session:
        session = Session(secrets.token_hex(8), name, model, a, b, time.time())
        with self._open() as db:
            db.execute(
                "INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?)",
                (session.id, name, model, json.dumps(a), json.dumps(b), session.created),
            )
        return session

    def sessions(self) -> list[Session]:
        """The newest first."""
        with self._open() as db:
            rows = db.execute(
                "SELECT s.*, count(p.id), count(p.verdict) FROM sessions s LEFT JOIN pairs p "
                "ON p.session = s.id GROUP BY s.id ORDER BY s.created DESC, s.rowid DESC"
            ).fetchall()
        return [_session(row) for row in rows]

    def session(self, session: str) -> Session | None:
        return next((found for found in self.sessions() if found.id == session), None)

    def delete_session(self, session: str) -> bool:
        """With its pairs and votes. False: there was none."""
        with self._open() as db:
            return db.execute("DELETE FROM sessions WHERE id = ?", (session,)).rowcount > 0

    def add_pair(self, session: str, prompt: str, a: Answer, b: Answer) -> Pair:
        left: Side = secrets.choice(("a", "b"))
        pair = Pair(secrets.token_hex(8), session, prompt, a, b, left)
        with self._open() as db:
            db.execute(
                "INSERT INTO pairs VALUES (?, ?, ?, ?, ?, ?, NULL, ?, NULL)",
                (pair.id, session, prompt, _dumped(a), _dumped(b), left, time.time()),
            )
        return pair

    def pair(self, pair: str) -> Pair | None:
        with self._open() as db:
            row = db.execute(f"SELECT {_COLUMNS} FROM pairs WHERE id = ?", (pair,)).fetchone()
        return None if row is None else _pair(row)

    def pairs(self, session: str) -> list[Pair]:
        """In the order in which they were made."""
        with self._open() as db:
            rows = db.execute(
                f"SELECT {_COLUMNS} FROM pairs WHERE session = ? ORDER BY created, rowid", (session,)
            ).fetchall()
        return [_pair(row) for row in rows]

    def vote(self, pair: str, vote: Vote) -> Pair | None:
        """The pair with its verdict; None if it has one already, or does not exist."""
        found = self.pair(pair)
        if found is None:
            return None
        verdict: Verdict = "tie" if vote == "tie" else found.at(vote)[0]
        with self._open() as db:
            changed = db.execute(
                "UPDATE pairs SET verdict = ?, voted = ? WHERE id = ? AND verdict IS NULL",
                (verdict, time.time(), pair),
            ).rowcount
        return self.pair(pair) if changed else None

    def results(self, session: str) -> Results:
        with self._open() as db:
            counts = dict(
                db.execute(
                    "SELECT verdict, count(*) FROM pairs WHERE session = ? GROUP BY verdict", (session,)
                )
            )
        a, b, ties = (counts.get(key, 0) for key in ("a", "b", "tie"))
        votes = a + b + ties
        return Results(
            Share.wilson(a, votes),
            Share.wilson(ties, votes),
            Share.wilson(b, votes),
            Share.wilson(a, a + b),
            counts.get(None, 0),
        )

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it or nothing."""
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
                f"{self.path}: cannot keep comparisons there ({error}); name another file as compare_db"
            ) from error

    def _prepare(self, db: sqlite3.Connection) -> None:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version == VERSION:
            return
        if version != 0 or db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise PomonaError(
                f"{self.path}: is no file of comparisons of this version; name another one as compare_db"
            )
        db.execute("BEGIN IMMEDIATE")  # two that find a new file: the second waits, and finds it made
        if db.execute("PRAGMA user_version").fetchone()[0] == 0:
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {VERSION}")


def preference_rows(session: Session, pairs: list[Pair]) -> list[dict[str, Any]]:
    """The decided votes as preferences: `prompt`, `chosen` and `rejected` are lists of messages, as TRL's
    trainers read them. A tie prefers nothing and makes no row."""
    rows = []
    for pair in pairs:
        if pair.verdict not in ("a", "b"):
            continue
        winner, loser = (pair.a, pair.b) if pair.verdict == "a" else (pair.b, pair.a)
        # An instruction that only one side had is part of that side, not of the prompt that both answered.
        system = session.a.get("system")
        prompt = (
            [{"role": "system", "content": system}] if system and system == session.b.get("system") else []
        )
        rows.append(
            {
                "prompt": [*prompt, {"role": "user", "content": pair.prompt}],
                "chosen": [{"role": "assistant", "content": winner.text}],
                "rejected": [{"role": "assistant", "content": loser.text}],
                "source": f"pomona compare {session.id}, {pair.verdict} was better",
            }
        )
    return rows


def vote_rows(session: Session, pairs: list[Pair]) -> list[dict[str, Any]]:
    """Every vote, ties among them, with the configurations. A pair without one stays blind."""
    return [
        {
            "session": session.id,
            "name": session.name,
            "model": session.model,
            "configurations": {"a": session.a, "b": session.b},
            "pair": pair.id,
            "prompt": pair.prompt,
            "a": pair.a.to_json(),
            "b": pair.b.to_json(),
            "left": pair.left,
            "verdict": pair.verdict,
        }
        for pair in pairs
        if pair.verdict is not None
    ]


_COLUMNS = "id, session, prompt, a, b, left, verdict"


def _dumped(answer: Answer) -> str:
    return json.dumps(answer.to_json(), ensure_ascii=False)


def _session(row: tuple[Any, ...]) -> Session:
    identity, name, model, a, b, created, pairs, votes = row
    return Session(identity, name, model, json.loads(a), json.loads(b), created, pairs, votes)


def _pair(row: tuple[Any, ...]) -> Pair:
    identity, session, prompt, a, b, left, verdict = row
    return Pair(identity, session, prompt, Answer(**json.loads(a)), Answer(**json.loads(b)), left, verdict)
