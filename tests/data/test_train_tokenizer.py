"""Tokenizer training: the report's settings, and a fast form that gives SentencePiece's ids on any text."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

pytest.importorskip("sentencepiece")

from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_samples import prose, write_rows

from pomona.data.train_tokenizer import AWKWARD, TokenizerOptions, TokenizerReport, train_tokenizer
from pomona.errors import PomonaError
from pomona.models.tokenizer import Tokenizer

VOCAB = 700


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TokenizerReport:
    root = tmp_path_factory.mktemp("tokenizer")
    rng = random.Random(1)
    code = "def f(x):\n    if x > 10:\n        return [y ** 2 for y in range(x)]  # twelve\n\n\n"
    texts = (
        [prose(rng, 30) for _ in range(60)]
        + [code * 5] * 4
        + ["naïve café, 12.5%  and   runs     of space"] * 9
    )
    path = write_rows(root / "a.jsonl", texts)
    return train_tokenizer([path], root / "out", TokenizerOptions(vocab_size=VOCAB))


@pytest.fixture(scope="module")
def both(trained: TokenizerReport) -> tuple[Tokenizer, object]:
    import sentencepiece

    slow = sentencepiece.SentencePieceProcessor(model_file=str(trained.folder / "tokenizer.model"))
    return Tokenizer.from_directory(trained.folder), slow


def ids(both: tuple[Tokenizer, object], text: str) -> list[int]:
    fast, slow = both
    found = fast.encode(text, parse_special=False)
    assert found == slow.EncodeAsIds(text)  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_has_the_same_ids_and_comes_back(both: tuple[Tokenizer, object], text: str) -> None:
    found = ids(both, text)
    if "\uffff" not in text:  # SentencePiece itself replaces what is no character
        assert both[0].decode(found) == text.replace("▁", " ")


@settings(max_examples=300, deadline=None)
@given(text=st.one_of(st.text(max_size=60), st.text(alphabet="aehint .\n\t 12é▁", max_size=60)))
def test_any_text_has_the_same_ids(both: tuple[Tokenizer, object], text: str) -> None:
    assert both[0].decode(ids(both, text)) == text.replace("▁", " ")


def test_long_text_has_the_same_ids(both: tuple[Tokenizer, object]) -> None:
    ids(both, prose(random.Random(5), 600) + " " * 1000 + "a" * 1000)


def test_the_settings_are_the_reports(both: tuple[Tokenizer, object]) -> None:
    fast, _ = both
    assert [fast.id_to_token(i) for i in range(5)] == ["<pad>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]
    pieces = [fast.id_to_token(i) or "" for i in range(fast.vocab_size)]
    assert fast.vocab_size == VOCAB and sum(piece.startswith("<0x") for piece in pieces) == 256
    ordinary = [piece for piece in pieces if not piece.startswith("<")]
    assert not [piece for piece in ordinary if len(piece) > 1 and any(c.isdigit() for c in piece)]
    assert any(piece.strip("▁") == "" and len(piece) > 1 for piece in ordinary)  # runs of white space
    assert any("▁" in piece.strip("▁") for piece in ordinary)  # pieces across words
    assert len(ids(both, "2024")) == 4 and len(ids(both, "\n")) == 1
    assert fast.eos_token_ids == (1,) and fast.bos_token_id is None
    assert ids(both, "e\u0301") != ids(both, "\u00e9")  # no normalisation


def test_control_tokens_are_read_only_where_they_are_meant(both: tuple[Tokenizer, object]) -> None:
    fast, _ = both
    assert fast.encode("<|im_end|>") == [4] and 4 not in fast.encode("<|im_end|>", parse_special=False)
    assert fast.encode_batch(["<|im_end|>", "ab"], parse_special=False) == [
        fast.encode(text, parse_special=False) for text in ("<|im_end|>", "ab")
    ]


def test_training_is_reproducible_and_says_what_it_did(trained: TokenizerReport, tmp_path: Path) -> None:
    again = train_tokenizer(
        [trained.folder.parent / "a.jsonl"], tmp_path / "o", TokenizerOptions(vocab_size=VOCAB)
    )
    first = (trained.folder / "tokenizer.json").read_bytes()
    assert (again.folder / "tokenizer.json").read_bytes() == first
    facts = json.loads((trained.folder / "training.json").read_text())
    assert facts["vocab_size"] == VOCAB and facts["documents"] == trained.documents == 73
    assert trained.bytes_per_token is not None and 2 < trained.bytes_per_token == facts["bytes_per_token"]


def test_a_part_of_the_text_is_enough(trained: TokenizerReport, tmp_path: Path) -> None:
    options = TokenizerOptions(vocab_size=400, max_bytes=60_000)
    part = train_tokenizer([trained.folder.parent / "a.jsonl"], tmp_path / "o", options)
    assert part.documents < trained.documents and 20_000 < part.bytes < 100_000


def test_transformers_reads_it(trained: TokenizerReport, both: tuple[Tokenizer, object]) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(trained.folder)
    assert (theirs.pad_token_id, theirs.eos_token_id, theirs.unk_token_id, theirs.bos_token) == (
        0,
        1,
        2,
        None,
    )
    for text in AWKWARD:
        if "<unk>" in text:  # spells control tokens, which transformers always reads as such
            continue
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids(both, text)
        assert theirs.decode(ids(both, text)) == both[0].decode(ids(both, text))


def test_too_little_text_for_so_many_tokens_is_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ["only a few words"])
    with pytest.raises(PomonaError, match="give more text or a smaller vocabulary"):
        train_tokenizer([path], tmp_path / "out", TokenizerOptions(vocab_size=5000))
    assert not (tmp_path / "out").exists()
