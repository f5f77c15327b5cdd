"""The taxonomy: the report's numbers, complete entries, a page that says the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pomona.errors import PomonaError
from pomona.safety.taxonomy import as_markdown, taxonomy

PAGE = Path(__file__).resolve().parents[2] / "docs" / "taxonomy.md"
HAZARDS = [f"S{number}" for number in range(1, 15)]


def test_it_has_as_many_categories_and_subcategories_as_the_report() -> None:
    assert len(taxonomy().categories) == 12
    assert len(list(taxonomy())) == 51


def test_every_entry_is_complete_and_has_an_id_of_its_own() -> None:
    entries = [*taxonomy().categories, *taxonomy()]
    assert len({entry.id for entry in entries}) == 12 + 51
    for entry in entries:
        assert re.fullmatch(r"[a-z_]+(\.[a-z_]+)?", entry.id)
        assert entry.title and entry.description.endswith(".")
        assert entry.source in ("report", "ours")


def test_a_subcategory_lies_in_the_category_that_its_id_names() -> None:
    for category in taxonomy().categories:
        assert len(category.subcategories) >= 3
        assert {part.category for part in category.subcategories} == {category.id}


def test_the_categories_that_the_report_names_are_marked() -> None:
    assert [category.title for category in taxonomy().categories if category.source == "report"] == [
        "Hate speech, stereotypes and slurs",
        "Discrimination, marginalisation and exclusion",
        "Illegal activities",
        "Adult sexual material",
        "Graphic violence",
    ]


def test_every_hazard_of_mlcommons_is_covered_and_no_other_is_named() -> None:
    assert list(taxonomy().hazards) == HAZARDS
    assert {hazard for part in taxonomy() for hazard in part.hazards} == set(HAZARDS)
    for hazard in HAZARDS:
        assert all(hazard in part.hazards for part in taxonomy().of_hazard(hazard))


def test_a_category_has_the_hazards_of_its_subcategories_in_mlcommons_order() -> None:
    for category in taxonomy().categories:
        assert set(category.hazards) == {hazard for part in category.subcategories for hazard in part.hazards}
        assert list(category.hazards) == sorted(category.hazards, key=HAZARDS.index)


def test_entries_are_found_by_id() -> None:
    assert taxonomy().category("weapons").title == "Weapons and dangerous materials"
    assert taxonomy().category("weapons.chemical").id == "weapons"
    assert taxonomy().subcategory("self_harm.suicide").hazards == ("S11",)


@pytest.mark.parametrize("name", ["", "weapon", "weapons.", "weapons.none", "Hate"])
def test_an_unknown_id_is_refused(name: str) -> None:
    with pytest.raises(PomonaError, match="the taxonomy has no"):
        taxonomy().category(name)
    with pytest.raises(PomonaError, match="the taxonomy has no subcategory"):
        taxonomy().subcategory(name)
    with pytest.raises(PomonaError, match="no hazard"):
        taxonomy().of_hazard(name)


def test_the_page_says_what_the_data_say() -> None:
    assert as_markdown() in PAGE.read_text(encoding="utf-8")
