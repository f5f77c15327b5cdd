"""Invented people, places and firms for synthetic mails. Every list is cut in two: recipes train with one
part, held-out sets are made with the other, so that a model cannot do well by knowing the names.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from pomona.adapters.recipes.tables import table

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTH = "January|February|March|April|May|June|July|August|September|October|November|December"
MONTHS = tuple(_MONTH.split("|"))
ROOMS = ("the main hall", "room 204", "the library", "the third-floor lounge", "room 12", "the garden cafe")


@cache
def kinds() -> dict[str, tuple[str, ...]]:
    return {row[0]: row[1:] for row in table("names")}


@cache
def known_names() -> frozenset[str]:
    """Words that are names wherever they stand: of people and cities, days and months, and the firms' first
    ones.
    """
    firms = (firm.split()[0] for firm in kinds()["firms"])
    known = (*kinds()["first"], *kinds()["last"], *kinds()["cities"])
    return frozenset((*known, *DAYS, *MONTHS, *firms))


@dataclass(frozen=True)
class World:
    """A source of invented facts. held_out: of the names that recipes never train with."""

    rng: random.Random
    held_out: bool = False

    def part(self, kind: str) -> tuple[str, ...]:
        """The values of a kind (a row of texts/names.txt) that belong to this world: every third is held
        out.
        """
        values = kinds()[kind]
        return values[2::3] if self.held_out else tuple(v for i, v in enumerate(values) if i % 3 != 2)

    def pick(self, kind: str) -> str:
        return self.rng.choice(self.part(kind))

    def people(self, count: int) -> list[str]:
        """Different first names."""
        return self.rng.sample(self.part("first"), count)

    def full_name(self) -> str:
        return f"{self.pick('first')} {self.pick('last')}"

    def firm(self) -> str:
        return self.pick("firms")

    def email(self, name: str, firm: str) -> str:
        first, last = name.lower().split()
        domain = firm.lower().replace(" ", "") + self.rng.choice((".example", ".example.com", ".example.org"))
        return (
            self.rng.choice((f"{first}.{last}", f"{first[0]}{last}", f"{first}_{last}", first)) + f"@{domain}"
        )

    def phone(self) -> str:
        """Of the ranges kept free for fiction."""
        number = self.rng.randrange(1000)
        return self.rng.choice(
            (
                f"+44 20 7946 0{number:03d}",
                f"(555) 010-0{number:03d}",
                f"555-01{number % 100:02d}",
                f"+1 555 010 0{number:03d}",
            )
        )

    def day(self) -> str:
        return self.rng.choice(DAYS)

    def date(self) -> str:
        r = self.rng
        month, day, year = r.choice(MONTHS), r.randint(1, 28), r.randint(2024, 2029)
        return r.choice(
            (
                f"{day} {month} {year}",
                f"{month} {day}, {year}",
                f"{year}-{MONTHS.index(month) + 1:02d}-{day:02d}",
                f"{r.choice(DAYS)}, {day} {month}",
                f"{month} {day}",
                f"{day}/{MONTHS.index(month) + 1}/{year}",
            )
        )

    def time(self) -> str:
        return self.times()[0]

    def times(self) -> tuple[str, str]:
        """Two times of a day, one after the other, written in one way."""
        first, second = sorted(self.rng.sample(range(8 * 4, 21 * 4), 2))
        long = self.rng.random() < 0.5

        def written(quarters: int) -> str:
            hour, minute = quarters // 4, quarters % 4 * 15
            if long:
                return f"{hour}:{minute:02d}"
            return f"{(hour - 1) % 12 + 1}{f':{minute}' if minute else ''} {'am' if hour < 12 else 'pm'}"

        return written(first), written(second)

    def address(self) -> str:
        return f"{self.rng.randint(2, 198)} {self.pick('streets')}"

    def amount(self) -> str:
        return f"{self.rng.choice('$€£')}{self.rng.choice((45, 60, 85, 120, 180, 240, 375, 640, 950, 1200))}"
