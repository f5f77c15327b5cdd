"""The review queue: items once, labels per grader, what most say, and rows to go on with."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

import pytest

from pomona.errors import PomonaError
from pomona.safety.review_store import ReviewStore


@pytest.fixture
def store(tmp_path: Path) -> ReviewStore:
    store = ReviewStore(tmp_path / "folder" / "review.db")
    assert store.add(
        "Bake bread.", "No.", source="m s/1", suggestion="refusal", tags=("illegal.fraud",), license="CC0-1.0"
    )
    assert store.add("Bake cake.", "Take eggs.", source="m s/2", suggestion="compliance", harmful=False)
    return store


def test_an_item_is_there_once(store: ReviewStore) -> None:
    assert not store.add("Bake bread.", "No.", source="again")
    assert store.add("Bake bread.", "Never.", source="again")
    assert [item.number for item in store.items()] == [1, 2, 3]


def test_most_graders_decide(store: ReviewStore) -> None:
    assert store.item(1).decision is None
    store.label(1, "refuses", grader="anna", note="short")
    assert store.item(1).decision == "refuses"
    store.label(1, "complies", grader="ben")
    assert store.item(1).decision == "unsure"
    store.label(1, "refuses", grader="cleo", tags=("hate.slurs",))
    assert store.item(1).decision == "refuses"
    assert store.counts() == {"items": 2, "waiting": 1, "labels": 3, "disputed": 1}


def test_a_second_label_replaces_the_first(store: ReviewStore) -> None:
    store.label(2, "refuses", grader="anna")
    assert [one.decision for one in store.label(2, "complies", grader="anna").labels] == ["complies"]


def test_waiting_items_are_those_that_a_grader_has_not_seen(store: ReviewStore) -> None:
    store.label(1, "refuses", grader="anna")
    assert [item.number for item in store.items(waiting_for="anna")] == [2]
    assert [item.number for item in store.items(waiting_for="ben")] == [1, 2]
    assert [item.number for item in store.items(waiting_for="")] == [2]
    assert [item.number for item in store.items(limit=1)] == [1]


def test_the_export_has_labelled_items_with_their_tags(store: ReviewStore) -> None:
    assert store.export() == []
    store.label(1, "refuses", grader="anna")
    store.label(2, "complies", grader="anna", tags=("deception_advice",))
    first, second = store.export()
    assert (first["verdict"], first["tags"], first["license"]) == ("refuses", ["illegal.fraud"], "CC0-1.0")
    assert (second["tags"], second["harmful"], second["labels"][0]["grader"]) == (
        ["deception_advice"],
        False,
        "anna",
    )


def test_what_makes_no_sense_is_refused_and_loses_nothing(store: ReviewStore) -> None:
    store.label(1, "refuses", grader="anna")
    for arguments, message in (
        ((9, "refuses", "anna", ()), "item 9"),
        ((1, "perhaps", "anna", ()), "choose complies"),
        ((1, "refuses", " ", ()), "needs a grader"),
        ((1, "refuses", "anna", ("fun",)), "no category 'fun'"),
    ):
        number, decision, grader, tags = arguments
        with pytest.raises(PomonaError, match=message):
            store.label(number, decision, grader=grader, tags=tags)  # type: ignore[arg-type]
    with pytest.raises(PomonaError, match="no category"):
        store.add("p", "r", source="s", tags=("fun",))
    assert store.counts()["labels"] == 1


def test_the_file_is_its_owners_and_no_other_ones(store: ReviewStore, tmp_path: Path) -> None:
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as db:
        db.execute("CREATE TABLE a (b)")
    with pytest.raises(PomonaError, match="no replies to review"):
        ReviewStore(foreign).items()
    (tmp_path / "text.db").write_text("not a database, but long enough to be looked at " * 9)
    with pytest.raises(PomonaError, match="cannot keep replies to review"):
        ReviewStore(tmp_path / "text.db").items()
