"""Invented people, places and firms for synthetic mails. Every list is cut in two: recipes train with one part,
held-out sets are made with the other, so that a model cannot do well by knowing the names."""

from __future__ import annotations

import random
from dataclasses import dataclass

FIRST = tuple(
    "Anna Ben Clara David Elena Farid Grace Hugo Ines Jonas Kira Liam Maya Noah Olga Pedro Quinn Rosa Sami Tara "
    "Umar Vera Wendy Xavier Yara Zoe Amir Bianca Carlos Dora Emil Fatima Gita Henrik Iris Jamal Klara Leo Mina "
    "Nadia Oscar Priya Rafael Sofia Tomas Ulla Victor Wanda Yusuf Zara Adele Boris Celia Diego Edith Felix "
    "Greta Hassan Ivan Judith".split()
)
LAST = tuple(
    "Abbott Becker Castillo Dubois Eriksen Fischer Grant Haddad Ivanova Jensen Kaplan Lindqvist Moreau Novak "
    "Okafor Petrov Quigley Rossi Sato Thompson Ueda Vargas Weber Xu Yilmaz Zimmer Alvarez Banerjee Cohen Duarte "
    "Evans Ferrari Gupta Hoffmann Ibrahim Jankowski Keller Larsen Mbeki Nakamura Osborne Park Ramirez Schmidt "
    "Tanaka Usman Virtanen Walsh Young Zhang".split()
)
CITIES = tuple(
    "Oslo Lyon Porto Bergen Leeds Graz Ghent Turin Malmo Cork Bristol Krakow Tampere Valencia Basel Dresden "
    "Galway Utrecht Zagreb Toledo Denver Austin Halifax Perth Durban Nagoya".split()
)
FIRMS = tuple(
    "Northwind|Birchwood Labs|Harbour Foods|Lumen Optics|Redleaf Press|Stonegate Bank|Orchard Systems|"
    "Willow Clinic|Fairway Travel|Copper Kettle|Blue Heron Media|Granite Works|Maple Insurance|Silverline|"
    "Tidewater Energy|Foxglove Design|Summit Tools|Juniper Health|Beacon Legal|Cedar Logistics".split("|")
)
STREETS = tuple(
    "Mill Lane|Station Road|Harbour Street|Church Row|Park Avenue|Elm Street|Bridge Road|Market Square|"
    "Hill Crescent|King Street|Orchard Way|Canal Walk".split("|")
)
TITLES = tuple(
    "Sales Manager|Project Lead|Head of Finance|Office Assistant|Account Executive|Research Scientist|"
    "Event Coordinator|Software Engineer|Marketing Director|Site Supervisor|Legal Counsel|HR Partner".split("|")
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January February March April May June July August September October November December".split()
)
ROOMS = ("the main hall", "room 204", "the library", "the third-floor lounge", "room 12", "the garden cafe")

KNOWN_NAMES = frozenset((*FIRST, *LAST, *CITIES, *DAYS, *MONTHS, *(w for f in FIRMS for w in f.split()[:1])))


@dataclass(frozen=True)
class World:
    """A source of invented facts. held_out: of the names that recipes never train with."""

    rng: random.Random
    held_out: bool = False

    def pick(self, values: tuple[str, ...]) -> str:
        part = values[2::3] if self.held_out else tuple(v for i, v in enumerate(values) if i % 3 != 2)
        return self.rng.choice(part)

    def people(self, count: int) -> list[str]:
        """Different first names."""
        part = FIRST[2::3] if self.held_out else tuple(v for i, v in enumerate(FIRST) if i % 3 != 2)
        return self.rng.sample(part, count)

    def full_name(self) -> str:
        return f"{self.pick(FIRST)} {self.pick(LAST)}"

    def firm(self) -> str:
        return self.pick(FIRMS)

    def email(self, name: str, firm: str) -> str:
        first, last = name.lower().split()
        domain = firm.lower().replace(" ", "") + self.rng.choice((".example", ".example.com", ".example.org"))
        return self.rng.choice((f"{first}.{last}", f"{first[0]}{last}", f"{first}_{last}", first)) + f"@{domain}"

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
        return f"{self.rng.randint(2, 198)} {self.pick(STREETS)}"

    def amount(self) -> str:
        return f"{self.rng.choice('$€£')}{self.rng.choice((45, 60, 85, 120, 180, 240, 375, 640, 950, 1200))}"
