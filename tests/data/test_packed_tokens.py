"""Packed tokens: what was written is read back, by document or as one sequence; damage is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packing_samples import write_packed

from pomona.data.packed_tokens import PackedTokens, PackedWriter
from pomona.errors import PomonaError

DOCUMENTS = [[5, 6, 7], [8], [9, 10, 11, 12], [13, 14]]
STREAM = [5, 6, 7, 0, 8, 0, 9, 10, 11, 12, 0, 13, 14, 0]


@pytest.mark.parametrize("shard_tokens", [1, 5, 6, 1000])
def test_documents_read_as_one_sequence_however_they_are_cut_into_files(
    tmp_path: Path, shard_tokens: int
) -> None:
    tokens = PackedTokens(write_packed(tmp_path / "p", DOCUMENTS, shard_tokens=shard_tokens))
    assert len(tokens) == len(STREAM) and tokens.index.documents == 4
    assert (len(tokens.index.shards) == 1) == (shard_tokens == 1000)
    for start in range(len(STREAM)):
        for count in range(len(STREAM) - start + 1):
            found = tokens.read(start, count)
            assert found.dtype == np.int64 and found.tolist() == STREAM[start : start + count]
    assert [row.tolist() for row in tokens.documents()] == [[*row, 0] for row in DOCUMENTS]
    tokens.verify()


@pytest.mark.parametrize(("vocab_size", "dtype"), [(1 << 16, "uint16"), ((1 << 16) + 1, "uint32")])
def test_the_vocabulary_decides_how_wide_a_token_is(tmp_path: Path, vocab_size: int, dtype: str) -> None:
    last = vocab_size - 1
    tokens = PackedTokens(write_packed(tmp_path / "p", [[last, 1]], vocab_size=vocab_size))
    assert tokens.index.dtype == dtype and tokens.read(0, 3).tolist() == [last, 1, 0]


def test_a_mapped_folder_travels_to_another_process_without_its_bytes(tmp_path: Path) -> None:
    tokens = PackedTokens(write_packed(tmp_path / "p", [list(range(1, 999))] * 50))
    before = tokens.read(0, 10)
    raw = pickle.dumps(tokens)
    assert len(raw) < 5000 and (pickle.loads(raw).read(0, 10) == before).all()


def test_reading_outside_is_an_index_error(tmp_path: Path) -> None:
    tokens = PackedTokens(write_packed(tmp_path / "p", DOCUMENTS))
    for start, count in [(-1, 2), (0, 15), (14, 1), (3, -1)]:
        with pytest.raises(IndexError):
            tokens.read(start, count)


def test_what_was_cut_off_or_changed_is_refused(tmp_path: Path) -> None:
    folder = write_packed(tmp_path / "p", DOCUMENTS)
    file = folder / "tokens-00000.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(PomonaError, match=r"27 bytes instead of 28.*pack the documents again"):
        PackedTokens(folder)
    file.write_bytes(whole[:4] + b"\xff\xff" + whole[6:])
    with pytest.raises(PomonaError, match="token id of 65535 in a vocabulary of 1000"):
        PackedTokens(folder).read(0, 4)
    file.write_bytes(whole[:4] + b"\x01\x00" + whole[6:])
    with pytest.raises(PomonaError, match="its sum is not that"):
        PackedTokens(folder).verify()
    file.unlink()
    with pytest.raises(PomonaError, match="cannot be read"):
        PackedTokens(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", 2),
        ("dtype", "int8"),
        ("tokens", 13),
        ("separator", 1000),
        ("shards", []),
        ("shards", [{"tokens": 14, "documents": 4, "sha256": "../../etc"}]),
        ("extra", 1),
        ("vocab_size", "many"),
    ],
)
def test_an_index_of_another_form_is_refused(tmp_path: Path, key: str, value: object) -> None:
    folder = write_packed(tmp_path / "p", DOCUMENTS)
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, key: value}))
    with pytest.raises(PomonaError, match="pack the documents again"):
        PackedTokens(folder)


@settings(max_examples=60, deadline=None)
@given(raw=st.binary(max_size=60))
def test_any_bytes_as_index_give_one_error(raw: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "index.json").write_bytes(raw)
    with pytest.raises(PomonaError):
        PackedTokens(folder)


def test_a_folder_without_an_index_says_how_one_is_made(tmp_path: Path) -> None:
    with pytest.raises(PomonaError, match="`pomona data pack`"):
        PackedTokens(tmp_path)


def test_the_writer_refuses_what_could_not_be_read_back(tmp_path: Path) -> None:
    writer = PackedWriter(tmp_path, vocab_size=10, separator=0, tokenizer="a" * 64)
    with pytest.raises(PomonaError, match="outside the vocabulary"):
        writer.add([3, 10])
    writer.add([])
    with pytest.raises(PomonaError, match="nothing to pack"):
        writer.finish()
    assert list(tmp_path.iterdir()) == []
