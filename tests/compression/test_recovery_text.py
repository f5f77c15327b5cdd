"""The text that recovery trains on: what is in it, that it can be repeated, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pomona.compression import recovery_text
from pomona.compression.recovery_text import TextOptions, TextPlan, document_start
from pomona.errors import PomonaError
from pomona.models.tokenizer import Tokenizer
from pomona.runtime.engine import Engine

OPTIONS = TextOptions(tokens=1024, window=64, held_out=2)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_kind_has_its_share_and_every_window_is_full(tiny_dir: Path, tmp_path: Path) -> None:
    text = TextPlan(tiny_dir, OPTIONS).prepare(tmp_path, threads=1)
    assert text.train.shape == (16, 64) and text.held_out.shape == (6, 64)
    assert {s.name: (s.windows, s.held_out) for s in text.sources} == {
        "free": (8, 2),
        "invented": (4, 2),
        "answers": (4, 2),
    }
    assert text.train.min() >= 0 and text.train.max() < 288
    windows = np.concatenate([text.train[:12], text.held_out[:4]])  # answers may be filled by their request
    assert len({window.tobytes() for window in windows}) == 16


def test_windows_open_as_their_kind_says(tiny_dir: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_directory(tiny_dir)
    text = TextPlan(tiny_dir, OPTIONS).prepare(tmp_path, threads=1)
    invented, answers = text.train[8:12], text.train[12:]
    assert all(tokenizer.decode(window).startswith("user: ") for window in [*invented, *answers])
    assert tokenizer.decode(answers[0]).startswith("user: Explain why the sky is blue")
    assert "Explain" not in tokenizer.decode(invented[0])


def test_the_model_wrote_it(tiny_dir: Path, tmp_path: Path) -> None:
    """A window that is sampled token by token from its seed, alone, is the same."""
    from pomona.runtime.engine import StepInput
    from pomona.runtime.sampling import Sampling

    text = TextPlan(tiny_dir, OPTIONS).prepare(tmp_path, threads=1)
    engine = Engine.load(tiny_dir, threads=1)
    window = [int(token) for token in text.train[3]]
    seed = recovery_text._SEED["free"] + 3
    with engine.new_sequence() as sequence:
        for place in range(63):
            sampled = engine.step(
                [StepInput(sequence, [window[place]], Sampling(temperature=1.0, seed=seed))]
            )
            assert sampled == [window[place + 1]]


def test_the_same_options_give_the_same_bytes_for_any_number_of_threads(
    tiny_dir: Path, tmp_path: Path
) -> None:
    plan = TextPlan(tiny_dir, OPTIONS)
    one = plan.prepare(tmp_path / "one", threads=1)
    two = TextPlan(tiny_dir, OPTIONS).prepare(tmp_path / "two", threads=2)
    assert one.sha256 == two.sha256 and files(one.folder) == files(two.folder)
    assert plan.key != TextPlan(tiny_dir, replace(OPTIONS, window=32)).key


@pytest.mark.parametrize("batches", [1, 3, 5])
def test_an_interrupted_writer_goes_on_where_it_was(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    monkeypatch.setattr(recovery_text, "BATCH", 3)
    expected = TextPlan(tiny_dir, OPTIONS).prepare(tmp_path / "whole", threads=1)
    real, calls = recovery_text._Writer.write, []

    def stopping(self: Any, *arguments: Any, **options: Any) -> Any:
        if len(calls) == batches:
            raise KeyboardInterrupt
        calls.append(arguments)
        return real(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(recovery_text._Writer, "write", stopping)
        with pytest.raises(KeyboardInterrupt):
            TextPlan(tiny_dir, OPTIONS).prepare(tmp_path / "parts", threads=1)
    with (tmp_path / "parts" / "held_out.i32").open("ab") as file:
        file.write(b"half a window")
    text = TextPlan(tiny_dir, OPTIONS).prepare(tmp_path / "parts", threads=1)
    assert files(text.folder) == files(expected.folder)


def test_a_text_that_is_there_is_not_written_again(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = TextPlan(tiny_dir, OPTIONS).prepare(tmp_path, threads=1)
    monkeypatch.setattr(recovery_text, "_Writer", None)
    assert TextPlan(tiny_dir, OPTIONS).prepare(tmp_path, threads=1).sha256 == first.sha256


def test_progress_is_told_and_ends_at_its_total(tiny_dir: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    TextPlan(tiny_dir, OPTIONS).prepare(tmp_path, threads=1, progress=lambda *a: told.append(a))
    assert told[-1] == ("write text", 22, 22)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


# --- the user's files


def test_a_file_is_cut_into_windows_and_its_last_ones_are_kept_for_judging(
    tiny_dir: Path, text_file: Path, tmp_path: Path
) -> None:
    options = TextOptions(tokens=0, window=64, files=(text_file,), held_out=2)
    text = TextPlan(tiny_dir, options).prepare(tmp_path, threads=1)
    expected = Tokenizer.from_directory(tiny_dir).encode(text_file.read_text(encoding="utf-8"))
    joined = np.concatenate([text.train.reshape(-1), text.held_out.reshape(-1)])
    assert joined.tolist() == expected[: len(joined)] and len(expected) - len(joined) < 64
    (source,) = text.sources
    assert source.sha256 is not None and source.held_out == 2
    assert source.name == f"calibration.txt#{source.sha256[:8]}"


def test_files_stand_beside_what_the_model_writes(tiny_dir: Path, text_file: Path, tmp_path: Path) -> None:
    text = TextPlan(tiny_dir, replace(OPTIONS, files=(text_file,))).prepare(tmp_path, threads=1)
    assert [source.name for source in text.sources][1:] == ["free", "invented", "answers"]
    alone = TextPlan(tiny_dir, OPTIONS).prepare(tmp_path / "alone", threads=1)
    assert np.array_equal(text.train[-16:], alone.train)


def test_json_lines_hold_texts_and_conversations(tiny_dir: Path, tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"text": "A first document. " * 10},
        {"messages": [{"role": "user", "content": "Hi " * 40}, {"role": "assistant", "content": "Ho"}]},
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    plan = TextPlan(tiny_dir, TextOptions(tokens=0, window=64, files=(path,), held_out=1))
    text = plan.prepare(tmp_path / "store", threads=1)
    whole = Tokenizer.from_directory(tiny_dir).decode(
        np.concatenate([text.train.reshape(-1), text.held_out.reshape(-1)])
    )
    assert whole.startswith("A first document.") and "user: Hi Hi" in whole


def test_a_document_begins_with_the_token_for_it(smollm2_dir: Path, tiny_dir: Path) -> None:
    assert document_start(Tokenizer.from_directory(smollm2_dir)) == 0  # <|endoftext|>
    assert document_start(Tokenizer.from_directory(tiny_dir)) is None


# --- what is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": 8}, "window 8"),
        ({"tokens": 0}, "no text at all"),
        ({"tokens": -1}, "no text at all"),
        ({"held_out": 0}, "at least one window"),
        ({"tokens": 10}, "do not fill a window"),
        ({"window": 4096, "tokens": 20000}, "context"),
    ],
)
def test_options_that_make_no_text_are_refused(
    tiny_dir: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(PomonaError, match=words) as caught:
        TextPlan(tiny_dir, replace(OPTIONS, **options)).prepare(tmp_path, threads=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"", "two windows"),
        ("a.txt", b"short", "two windows"),
        ("a.txt", b"\xff\xfe", "UTF-8"),
        ("a.jsonl", b"{", "line 1"),
        ("a.jsonl", b'{"words": "x"}', "line 1"),
    ],
)
def test_files_that_are_no_text_are_refused_by_name(
    tiny_dir: Path, tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(PomonaError, match=words) as caught:
        TextPlan(tiny_dir, replace(OPTIONS, files=(path,)))
    assert str(path) in str(caught.value)


def test_a_file_given_twice_is_refused(tiny_dir: Path, text_file: Path) -> None:
    with pytest.raises(PomonaError, match="give each once"):
        TextPlan(tiny_dir, replace(OPTIONS, files=(text_file, text_file)))


def test_a_store_of_another_text_is_refused(tiny_dir: Path, tmp_path: Path) -> None:
    TextPlan(tiny_dir, OPTIONS).prepare(tmp_path, threads=1)
    with pytest.raises(PomonaError, match="holds another text"):
        TextPlan(tiny_dir, replace(OPTIONS, window=32)).prepare(tmp_path, threads=1)
