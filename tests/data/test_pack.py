"""`pack`: documents of files as token ids, each followed by the end token; what cannot be read is told."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from packing_samples import END, write_tokenizer

from pomona.data.documents import Record, Skip, read_documents
from pomona.data.pack import pack
from pomona.data.packed_tokens import PackedTokens
from pomona.errors import PomonaError


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "tokenizer")


def rows(path: Path, *texts: str) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_documents_become_tokens_in_order(tmp_path: Path, tokenizer: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    rows(folder / "b.jsonl", "w3 w4", "w5")
    with gzip.open(folder / "c.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": "w6"}) + "\n")
    (folder / "a.txt").write_text("w1\nw2\n")
    report = pack([folder], tmp_path / "out", tokenizer, shard_tokens=4)
    tokens = PackedTokens(tmp_path / "out")
    assert [row.tolist() for row in tokens.documents()] == [[1, 2, END], [3, 4, END], [5, END], [6, END]]
    assert report.index.documents == 4 and report.skips == () and report.characters == 5 + 1 + 5 + 2 + 2


def test_text_that_spells_a_control_token_ends_no_document(tmp_path: Path, tokenizer: Path) -> None:
    pack([rows(tmp_path / "a.jsonl", "w1 <end> w2")], tmp_path / "out", tokenizer)
    [document] = PackedTokens(tmp_path / "out").documents()
    assert document.tolist()[-1] == END and END not in document.tolist()[:-1]


def test_broken_lines_are_told_and_cost_no_other(tmp_path: Path, tokenizer: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"text": "w1"}\n{"text": "w\xff"}\n{"text": 5}\n[1]\n{"te\n\n'
        b'{"text": "\\ud800"}\n{"text": " "}\n{"text": "w2"}'
    )
    report = pack([path], tmp_path / "out", tokenizer)
    assert [row.tolist() for row in PackedTokens(tmp_path / "out").documents()] == [[1, END], [2, END]]
    assert [skip.number for skip in report.skips] == [2, 3, 4, 5, 7, 8]
    assert "is not UTF-8" in str(report.skips[0]) and str(report.skips[0]).startswith(f"{path}, line 2")


def test_a_line_of_100_megabytes_is_passed_over_without_being_held(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "first"}\n{"text": "')
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n{"text": "last"}\n')
    tracemalloc.start()
    found = list(read_documents(path, max_bytes=1 << 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [one.text for one in found if isinstance(one, Record)] == ["first", "last"]
    assert [(one.number, one.reason) for one in found if isinstance(one, Skip)] == [
        (2, "longer than 1048576 bytes")
    ]
    assert peak < 8 << 20


def test_a_damaged_archive_gives_what_it_holds_and_a_skip(tmp_path: Path) -> None:
    import os

    noise = [os.urandom(2000).hex() for _ in range(50)]
    raw = gzip.compress(b"".join(json.dumps({"text": text}).encode() + b"\n" for text in noise))
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(raw[: len(raw) // 2])
    found = list(read_documents(path))
    assert len(found) > 5 and isinstance(found[-1], Skip) and "cannot be read to its end" in found[-1].reason
    assert [one.text for one in found[:3] if isinstance(one, Record)] == noise[:3]


def test_an_empty_shard_is_no_error_but_nothing_at_all_is(tmp_path: Path, tokenizer: Path) -> None:
    empty, full = tmp_path / "a.jsonl", rows(tmp_path / "b.jsonl", "w1")
    empty.touch()
    assert pack([empty, full], tmp_path / "out", tokenizer).index.documents == 1
    with pytest.raises(PomonaError, match="nothing to pack"):
        pack([empty], tmp_path / "none", tokenizer)
    assert not (tmp_path / "none").exists()


def test_what_is_there_is_only_replaced_when_asked(tmp_path: Path, tokenizer: Path) -> None:
    source = rows(tmp_path / "a.jsonl", "w1")
    pack([source], tmp_path / "out", tokenizer)
    with pytest.raises(PomonaError, match="already exists"):
        pack([source], tmp_path / "out", tokenizer)
    rows(source, "w2")
    pack([source], tmp_path / "out", tokenizer, overwrite=True)
    assert PackedTokens(tmp_path / "out").read(0, 1).tolist() == [2]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(PomonaError, match="delete it yourself"):
        pack([source], tmp_path / "mine", tokenizer, overwrite=True)


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path: Path) -> None:
    endless = write_tokenizer(tmp_path / "endless", end=None)
    with pytest.raises(PomonaError, match="names no eos_token"):
        pack([rows(tmp_path / "a.jsonl", "w1")], tmp_path / "out", endless)


def test_an_input_that_is_not_there_is_named(tmp_path: Path, tokenizer: Path) -> None:
    with pytest.raises(PomonaError, match=r"none\.jsonl: there is no such file"):
        pack([tmp_path / "none.jsonl"], tmp_path / "out", tokenizer)
    (tmp_path / "a.bin").touch()
    with pytest.raises(PomonaError, match="is of no kind"):
        pack([tmp_path / "a.bin"], tmp_path / "out", tokenizer)
