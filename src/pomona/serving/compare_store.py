"""Blind comparisons in a SQLite file: sessions, pairs of answers, votes, and what the votes say.

    store = CompareStore(Path("compare.db"))
    session = store.new_session("tone", config_a, config_b)
    pair = store.add_pair(session.id, prompt, answer_a, answer_b)     # sides are shuffled here
    store.vote(pair.id, "left")
    store.results(session.id).a_wins

A pair is voted on once: after the vote its names are known.
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pomona.evaluation.statistics import Share
from pomona.owned_database import OwnedDatabase

VERSION = 1
Side = Literal["a", "b"]
Verdict = Literal["a", "b", "tie"]
Vote = Literal["left", "right", "tie"]

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
        self._open = OwnedDatabase(
            path, schema=_SCHEMA, version=VERSION, holds="comparisons", key="compare_db"
        ).open

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
