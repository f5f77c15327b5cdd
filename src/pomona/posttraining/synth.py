"""Synthetic training data (AFM report, section 4.2): what its three kinds share.

An author is any model with sessions: local, or behind an OpenAI-compatible endpoint. It writes; rules, known
answers and executed tests decide what is kept. Everything that is dropped is counted by its reason, and so is
what the author could not do.

The same author, seed and seeds give the same rows.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pomona.adapters.recipes.rows import write_jsonl
from pomona.errors import PomonaError
from pomona.runtime.backend import LanguageModel
from pomona.runtime.sampling import Sampling

TOGETHER = 8  # questions that are asked at a time
MAX_ROWS = 1_000_000

Row = dict[str, Any]


@dataclass
class SynthReport:
    """kept: rows by kind ("rephrase", "single", ...). dropped: (kind, reason) -> how often."""

    technique: str
    asked: int = 0  # questions to the author
    unanswered: int = 0  # of these, without a usable answer: cut off, refused, an error
    kept: Counter[str] = field(default_factory=Counter)
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)

    def drop(self, kind: str, reason: str) -> None:
        self.dropped[kind, reason] += 1

    def to_json(self) -> dict[str, Any]:
        return {
            "version": 1,
            "technique": self.technique,
            "asked": self.asked,
            "unanswered": self.unanswered,
            "kept": dict(self.kept),
            "dropped": [
                {"kind": kind, "reason": reason, "count": count}
                for (kind, reason), count in self.dropped.most_common()
            ],
        }


@dataclass(frozen=True)
class Question:
    """One thing to ask the author. form: options of the turn, such as `schema` or `choices`."""

    text: str
    instructions: str | None = None
    form: dict[str, Any] = field(default_factory=dict)


class Author:
    """Asks a model and keeps count. Closing the model stays the caller's."""

    def __init__(
        self,
        model: LanguageModel,
        name: str,
        report: SynthReport,
        *,
        temperature: float = 0.8,
        max_new_tokens: int = 512,
        seed: int = 0,
    ) -> None:
        """name: noted as the source of every row."""
        self.model, self.name, self.report = model, name, report
        self.temperature, self.max_new_tokens, self.seed = temperature, max_new_tokens, seed
        self._number = 0

    def ask(self, questions: Sequence[Question], *, temperature: float | None = None) -> list[Any]:
        """The content of every answer, None where there is none that can be used."""
        found: list[Any] = []
        for at in range(0, len(questions), TOGETHER):
            found += asyncio.run(self._together(questions[at : at + TOGETHER], temperature))
        return found

    def ask_one(self, question: Question, *, temperature: float | None = None) -> Any:
        return self.ask([question], temperature=temperature)[0]

    async def _together(self, questions: Sequence[Question], temperature: float | None) -> list[Any]:
        async def one(question: Question, number: int) -> Any:
            heat = self.temperature if temperature is None else temperature
            session = self.model.session(
                instructions=question.instructions,
                sampling=Sampling(temperature=heat, seed=self.seed + number),
                max_new_tokens=self.max_new_tokens,
            )
            try:
                reply = await session.arespond(question.text, **question.form)
            except PomonaError:
                return None
            return None if reply.finish_reason == "length" else reply.content

        first = self._number
        self._number += len(questions)
        self.report.asked += len(questions)
        answers = await asyncio.gather(*(one(q, first + n) for n, q in enumerate(questions)))
        self.report.unanswered += sum(answer is None for answer in answers)
        return list(answers)


def write_synth(
    out: Path, rows: Iterator[tuple[str, Row]], report: SynthReport, *, count: int, overwrite: bool = False
) -> int:
    """Writes at most `count` different rows of (kind, row) to a JSONL file; whole or not at all.

    PomonaError: the file is there, or no row was kept (with the commonest reason).
    """
    if out.exists() and not overwrite:
        raise PomonaError(f"{out}: is there already; choose another file, or use --overwrite")
    if not 1 <= count <= MAX_ROWS:
        raise PomonaError(f"rows = {count}: must lie in 1 .. {MAX_ROWS:,}")

    def different() -> Iterator[Row]:
        seen: set[str] = set()
        for kind, row in rows:
            key = plain(str(row["messages"]))
            if key in seen:
                report.drop(kind, "repeats a row")
                continue
            seen.add(key)
            report.kept[kind] += 1
            yield row
            if len(seen) >= count:
                return

    try:
        return write_jsonl(out, different())
    except PomonaError:
        if report.kept:
            raise
        [(kind, reason), _] = (report.dropped.most_common(1) or [(("all", "the author gave nothing"), 0)])[0]
        raise PomonaError(f"{out}: no row was kept ({kind}: {reason}); use a stronger author") from None


def plain(text: str) -> str:
    """Lower case, single spaces: rows that differ in no more are the same."""
    return " ".join(text.casefold().split())


def chat_row(question: str, answer: str, kind: str, author: str, license: str) -> Row:
    """A row that SFT reads."""
    return {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        "source": f"pomona synth {kind} by {author}",
        "license": license,
    }


def cycled(items: Sequence[Any], rng: random.Random) -> Iterator[Any]:
    """The items again and again, each time in another order."""
    if not items:
        raise PomonaError("synth: there are no seeds to start from; give some")
    while True:
        yield from rng.sample(list(items), len(items))


class Different:
    """Lets through what is not nearly the same as something before.

    The report compares embeddings. A bag of words is enough to find questions that copy each other, and needs
    no second model: the cosine of the counts of words.
    """

    def __init__(self, most: float = 0.9) -> None:
        self.most = most
        self._bags: list[tuple[Counter[str], float]] = []

    def add(self, text: str) -> bool:
        """Whether it is different; then it is remembered."""
        bag = Counter(re.findall(r"\w+", text.casefold()))
        length = sum(count * count for count in bag.values()) ** 0.5
        for other, size in self._bags:
            product = sum(count * other[word] for word, count in bag.items())
            if length * size > 0 and product / (length * size) >= self.most:
                return False
        self._bags.append((bag, length))
        return True
