"""Text for small runs: what is gathered, what is held out, and what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pretrain_samples import write_text

from pomona.errors import PomonaError
from pomona.pretraining.corpus import PUBLIC, available, documents, gather
from pomona.pretraining.recipe import SourceSettings


def source(**values: object) -> SourceSettings:
    return SourceSettings.model_validate(values)


def rows(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_files_are_split_by_the_hash_of_each_text(tmp_path: Path) -> None:
    write_text(tmp_path / "a.jsonl", documents=300)
    found = gather("a", source(files=[tmp_path / "a.jsonl"]), tmp_path / "one", validation_share=0.1)
    train, held_out = rows(found.train), rows(found.held_out)
    assert (len(train), len(held_out)) == (found.train_documents, found.held_out_documents)
    assert len(train) + len(held_out) == 300 and not set(train) & set(held_out)
    assert 10 <= len(held_out) <= 60
    # Twice as much text leaves every old document on its side.
    (tmp_path / "b.jsonl").write_text(
        (tmp_path / "a.jsonl").read_text() + write_text(tmp_path / "c.jsonl", seed=5).read_text()
    )
    more = gather("b", source(files=[tmp_path / "b.jsonl"]), tmp_path / "two", validation_share=0.1)
    assert set(train) <= set(rows(more.train)) and set(held_out) <= set(rows(more.held_out))


def test_a_text_that_comes_twice_is_taken_once(tmp_path: Path) -> None:
    text = write_text(tmp_path / "a.jsonl", documents=100).read_text()
    (tmp_path / "a.jsonl").write_text(text + text)
    found = gather("a", source(files=[tmp_path / "a.jsonl"]), tmp_path / "out", validation_share=0.1)
    assert found.train_documents + found.held_out_documents == 100


def test_a_source_stops_at_its_size(tmp_path: Path) -> None:
    write_text(tmp_path / "a.jsonl", documents=400)
    found = gather(
        "a", source(files=[tmp_path / "a.jsonl"], max_mb=0.02), tmp_path / "out", validation_share=0.1
    )
    assert 20_000 <= found.train_bytes + found.held_out_bytes < 21_000


def test_a_long_text_is_cut_at_paragraphs_and_its_lines_joined(tmp_path: Path) -> None:
    line = "A line that a typesetter broke at the seventieth column or nearby, \n"
    (tmp_path / "book.txt").write_text("\n".join([line * 12] * 30), encoding="utf-8")
    found = list(documents(source(files=[tmp_path / "book.txt"])))
    assert len(found) > 3 and all(len(text) < 6000 for text in found)
    assert "nearby, A line" in found[0]


def test_what_is_installed_here_is_documentation_enough() -> None:
    found = []
    for text in documents(source(packages=["python"])):
        found.append(text)
        if sum(map(len, found)) > 500_000:
            break
    assert sum(map(len, found)) > 500_000  # a plain Python brings this much
    assert all(len(text) < 60_000 for text in found)


def test_documentation_comes_in_the_same_order_each_time() -> None:
    from itertools import islice

    first, second = (list(islice(documents(source(packages=["python"])), 30)) for _ in range(2))
    assert first == second


def test_too_little_text_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One short text.", encoding="utf-8")
    with pytest.raises(PomonaError, match="source a: has 1 documents"):
        gather("a", source(files=[tmp_path / "a.txt"]), tmp_path / "out", validation_share=0.1)


def test_public_text_needs_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wanted = source(public=["tinystories"])
    monkeypatch.delenv("POMONA_DATA", raising=False)
    assert not available(wanted)
    with pytest.raises(PomonaError, match="POMONA_DATA is not set"):
        list(documents(wanted))
    monkeypatch.setenv("POMONA_DATA", str(tmp_path))
    assert not available(wanted)
    (tmp_path / "tinystories").mkdir()
    assert available(wanted)
    write = tmp_path / "tinystories" / PUBLIC["tinystories"]
    write.write_text(
        "*** START OF THE BOOK\nOnce upon a time.\n*** END OF THE BOOK\nLicence", encoding="utf-8"
    )
    assert list(documents(wanted)) == ["Once upon a time."]


def test_evaluation_sets_cannot_be_trained_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POMONA_DATA", str(tmp_path))
    with pytest.raises(PomonaError, match="wikitext2raw: is no corpus to train on"):
        list(documents(source(public=["wikitext2raw"])))


@pytest.mark.data
def test_every_public_corpus_is_read() -> None:
    for name in PUBLIC:
        assert sum(len(text) for text in documents(source(public=[name]))) > 100_000, name
