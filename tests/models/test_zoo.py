"""The zoo: adapters that come with pomona, found by the fingerprint of their base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pomona.errors import PomonaError
from pomona.models import zoo
from pomona.models.store import _NAME

ROOT = Path(__file__).resolve().parents[2]


def put(place: Path, model: str, name: str, record: object) -> Path:
    directory = place / model / name
    directory.mkdir(parents=True)
    (directory / "pomona.json").write_text(json.dumps(record))
    return directory


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own zoo of this test, empty, in POMONA_ZOO."""
    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.setenv("POMONA_ZOO", str(folder))
    return folder


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for sources in which zoo.py believes to lie; gives its root."""
    monkeypatch.delenv("POMONA_ZOO", raising=False)
    file = tmp_path / "src" / "pomona" / "models" / "zoo.py"
    file.parent.mkdir(parents=True)
    monkeypatch.setattr(zoo, "__file__", str(file))
    return tmp_path


def test_entries_are_listed_by_model_and_name(place: Path) -> None:
    put(place, "small", "summarize", {"base_fingerprint": "aa"})
    put(place, "big", "recovery", {"base_fingerprint": "bb"})
    put(place, "small", "recovery", {"base_fingerprint": "aa"})
    put(place, "small", ".recovery.partial-1", {"base_fingerprint": "aa"})
    (place / "README.md").write_text("about them")
    found = zoo.entries()
    assert [(e.model, e.name, e.base_fingerprint) for e in found] == [
        ("big", "recovery", "bb"),
        ("small", "recovery", "aa"),
        ("small", "summarize", "aa"),
    ]
    assert found[0].path == place / "big" / "recovery"


def test_an_adapter_is_found_by_base_and_name(place: Path) -> None:
    wanted = put(place, "small", "recovery", {"base_fingerprint": "aa"})
    entry = zoo.find("aa", "recovery")
    assert entry is not None and entry.path == wanted
    assert zoo.find("ab", "recovery") is None
    assert zoo.find("aa", "summarize") is None


@pytest.mark.parametrize("record", [{}, {"base_fingerprint": None}, {"base_fingerprint": 7}, []])
def test_an_adapter_that_does_not_name_its_base_is_an_error(place: Path, record: object) -> None:
    put(place, "small", "recovery", record)
    with pytest.raises(PomonaError, match=r"pomona\.json: .*; get"):
        zoo.entries()


def test_the_variable_must_name_a_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POMONA_ZOO", str(place / "no"))
    with pytest.raises(PomonaError, match=r"POMONA_ZOO=.* no folder"):
        zoo.entries()


def test_a_folder_named_zoo_without_the_mark_is_not_ours(installed: Path) -> None:
    put(installed / "zoo", "small", "recovery", {})
    assert zoo.folder() is None
    assert zoo.entries() == ()


def test_a_checkout_has_its_zoo_at_the_root_and_a_package_inside(installed: Path) -> None:
    for place in (installed / "zoo", installed / "src" / "pomona" / "zoo"):
        place.mkdir()
        (place / "README.md").write_text("about it")
        assert zoo.folder() == place  # the package's own comes first


def test_the_zoo_of_this_checkout_is_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POMONA_ZOO", raising=False)
    assert zoo.folder() == ROOT / "zoo"
    page = (ROOT / "zoo" / "README.md").read_text(encoding="utf-8")
    for entry in zoo.entries():
        assert _NAME.fullmatch(entry.model) and _NAME.fullmatch(entry.name)
        assert f"{entry.model}/{entry.name}" in page, "an adapter without its section"
        record = json.loads((entry.path / "pomona.json").read_text(encoding="utf-8"))
        assert record["license"] and record["recipe"]
