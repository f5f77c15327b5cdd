"""`pomona perplexity`: text in, windows scored by the engine, one number out."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

Command = Callable[..., Any]


class FakeTokenizer:
    """One token per word; token 7 for each. `bos` goes before a text when special tokens are asked for."""

    bos: int | None = None
    texts: list[str]

    def __init__(self) -> None:
        self.texts = []

    @property
    def bos_token_id(self) -> int | None:
        return 1

    def encode(self, text: str, *, add_special_tokens: bool = False, parse_special: bool = True) -> list[int]:
        self.texts.append(text)
        head = [self.bos] if add_special_tokens and self.bos is not None else []
        return [*head, *([7] * len(text.split()))]


class FakeEngine:
    """Finds every token as likely as one of four."""

    def __init__(self) -> None:
        self.config = SimpleNamespace(max_position_embeddings=2048, vocab_size=8)
        self.asked: list[list[int]] = []
        self.options: dict[str, Any] = {}

    def score(self, token_ids: Sequence[int], /) -> Any:
        self.asked.append(list(token_ids))
        return np.full(len(token_ids) - 1, np.log(0.25), np.float32)


@pytest.fixture
def parts(
    put_model: Callable[..., Path], fake_module: Callable[..., None]
) -> tuple[FakeEngine, FakeTokenizer]:
    directory = put_model("smol")
    engine, tokenizer = FakeEngine(), FakeTokenizer()

    def load(path: Path, **options: Any) -> FakeEngine:
        assert path == directory
        engine.options = options
        return engine

    fake_module("pomona.runtime.engine", Engine=SimpleNamespace(load=load))
    fake_module("pomona.models.tokenizer", Tokenizer=SimpleNamespace(from_directory=lambda path: tokenizer))
    return engine, tokenizer


def test_the_built_in_text_is_scored_by_default(
    pomona: Command, parts: tuple[FakeEngine, FakeTokenizer]
) -> None:
    engine, tokenizer = parts
    outcome = pomona("perplexity", "smol")
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[0] == "perplexity 4.000"
    assert "built-in text in 3 windows of 1024 (all)" in outcome.out
    assert "Skarholm" in tokenizer.texts[0]
    assert [len(window) for window in engine.asked][:2] == [1024, 1024]
    assert outcome.err == "perplexity ...\n"


def test_options_reach_the_engine_and_the_measure(
    pomona: Command, parts: tuple[FakeEngine, FakeTokenizer], tmp_path: Path
) -> None:
    engine, _ = parts
    text = tmp_path / "words.txt"
    text.write_text("word " * 100)
    line = f"--text {text} --context 8 --chunks 3 --score second-half --threads 2 --isa scalar --json"
    found = pomona("perplexity", "smol", *line.split()).json
    assert engine.options == {"threads": 2, "isa": "scalar"}
    assert len(engine.asked) == found["windows"] == 3
    assert found["tokens"] == 9
    assert found["perplexity"] == pytest.approx(4)
    assert (found["model"], found["text"]) == ("smol", str(text))
    assert (found["context"], found["scored"]) == (8, "second-half")


def test_a_model_whose_texts_begin_with_bos_gets_it_in_every_window(
    pomona: Command, parts: tuple[FakeEngine, FakeTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, tokenizer = parts
    monkeypatch.setattr("sys.stdin", io.StringIO("w " * 20))
    tokenizer.bos = 1
    assert pomona("perplexity", "smol", "--text", "-", "--context", "10").code == 0
    assert [window[0] for window in engine.asked] == [1, 1]


def test_a_model_that_wants_no_bos_gets_none(
    pomona: Command, parts: tuple[FakeEngine, FakeTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = parts
    monkeypatch.setattr("sys.stdin", io.StringIO("w " * 20))
    assert pomona("perplexity", "smol", "--text", "-", "--context", "10").code == 0
    assert [window[0] for window in engine.asked] == [7, 7]


def test_a_text_that_is_not_there_is_told_before_the_model_is_loaded(
    pomona: Command, parts: tuple[FakeEngine, FakeTokenizer]
) -> None:
    outcome = pomona("perplexity", "smol", "--text", "absent.txt")
    assert outcome.code == 2
    assert "absent.txt: cannot be read" in outcome.err
    assert parts[1].texts == []


def test_an_empty_text_and_a_context_too_long_are_told_in_one_line(
    pomona: Command, parts: tuple[FakeEngine, FakeTokenizer], tmp_path: Path
) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    assert "no tokens" in pomona("perplexity", "smol", "--text", str(empty)).err
    outcome = pomona("perplexity", "smol", "--context", "4096", "--json")
    assert outcome.code == 2
    assert "4096 tokens are more than this model's 2048" in outcome.json["error"]
