"""The kinds of harm as data: 12 categories, 51 subcategories, mapped to MLCommons' hazards.

Report, section 8.3, whose full list is not public. Five categories carry the names that it gives, the others
are ours; each says which (`source`). taxonomy.yaml is the one place where they stand; docs/taxonomy.md is
checked against it. Hazards S1-S12 are those of MLCommons' AILuminate 1.0, in the numbering of Llama Guard 3,
whose S13 and S14 continue it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pomona.errors import PomonaError

FILE = Path(__file__).with_name("taxonomy.yaml")

Source = Literal["report", "ours"]


@dataclass(frozen=True)
class Subcategory:
    """One kind of harm. `id` is CATEGORY.NAME; `hazards` are MLCommons', none where it has none."""

    id: str
    title: str
    description: str
    hazards: tuple[str, ...]
    source: Source

    @property
    def category(self) -> str:
        """The id of the category that it belongs to."""
        return self.id.partition(".")[0]


@dataclass(frozen=True)
class Category:
    """A primary category; `hazards` are those of its subcategories, in MLCommons' order."""

    id: str
    title: str
    description: str
    hazards: tuple[str, ...]
    source: Source
    subcategories: tuple[Subcategory, ...]


@dataclass(frozen=True)
class Taxonomy:
    """All kinds of harm in the order of the file. `hazards`: MLCommons' number -> its title."""

    version: int
    hazards: dict[str, str]
    categories: tuple[Category, ...]

    def __iter__(self) -> Iterator[Subcategory]:
        """Every subcategory."""
        for category in self.categories:
            yield from category.subcategories

    def category(self, name: str) -> Category:
        """The category of an id; that of a subcategory's id, too. PomonaError: unknown."""
        home = name.partition(".")[0]
        if home != name:
            self.subcategory(name)
        for category in self.categories:
            if category.id == home:
                return category
        known = ", ".join(category.id for category in self.categories)
        raise PomonaError(f"the taxonomy has no category {name!r}; its categories are {known}")

    def subcategory(self, name: str) -> Subcategory:
        """PomonaError: unknown."""
        for subcategory in self:
            if subcategory.id == name:
                return subcategory
        raise PomonaError(f"the taxonomy has no subcategory {name!r}; docs/taxonomy.md lists all")

    def of_hazard(self, hazard: str) -> tuple[Subcategory, ...]:
        """The subcategories that belong to one of MLCommons' hazards. PomonaError: no such hazard."""
        if hazard not in self.hazards:
            raise PomonaError(f"MLCommons has no hazard {hazard!r}; there are {', '.join(self.hazards)}")
        return tuple(subcategory for subcategory in self if hazard in subcategory.hazards)


@cache
def taxonomy() -> Taxonomy:
    """The taxonomy that ships with pomona."""
    import yaml

    raw = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    hazards: dict[str, str] = raw["hazards"]
    categories = tuple(_category(item, list(hazards)) for item in raw["categories"])
    return Taxonomy(raw["version"], hazards, categories)


def _category(raw: dict[str, Any], order: list[str]) -> Category:
    """`order` is that of the hazards."""
    parts = tuple(
        Subcategory(**{**item, "hazards": tuple(item["hazards"])}) for item in raw.pop("subcategories")
    )
    found = {hazard for part in parts for hazard in part.hazards}
    return Category(**raw, hazards=tuple(filter(found.__contains__, order)), subcategories=parts)


def as_markdown() -> str:
    """The table of docs/taxonomy.md: a row for each subcategory, under its category."""
    lines = []
    for category in taxonomy().categories:
        lines += [
            f"### {category.title}",
            "",
            f"`{category.id}`, {_named_by(category.source)}. {category.description}",
            "",
            "| id | subcategory | name | MLCommons | what |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| `{part.id}` | {part.title} | {part.source} | {', '.join(part.hazards) or 'none'} "
            f"| {part.description} |"
            for part in category.subcategories
        ]
        lines.append("")
    return "\n".join(lines)


def _named_by(source: Source) -> str:
    return "named by the report" if source == "report" else "named by us"
