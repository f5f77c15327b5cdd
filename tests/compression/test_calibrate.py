"""The calibration text: the model's own answers, or the user's file, with a part that is held out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pomona.compression import calibrate as module
from pomona.compression.calibrate import CalibrationText, calibration_text
from pomona.data.builtin_text import ChatPrompt, calibration_prompts
from pomona.errors import PomonaError
from pomona.models.tokenizer import Tokenizer
from pomona.runtime.engine import Engine


def load(directory: Path, threads: int = 1) -> Engine:
    return Engine.load(directory, threads=threads, kv_tokens=32_768, huge_pages=False)


@pytest.fixture
def tokenizer(byte_tokenizer_dir: Path) -> Tokenizer:
    return Tokenizer.from_directory(byte_tokenizer_dir)


PROMPTS = [
    ChatPrompt("a", f"Say {word}.", system)
    for word in ("one", "two", "three", "four", "five")
    for system in (None, "Be kind.")
]


@pytest.fixture
def few_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten short prompts, answers of at most 12 tokens, 4 sequences together, one prompt in 3 held out."""
    monkeypatch.setattr(module, "calibration_prompts", lambda: PROMPTS)
    monkeypatch.setattr(module, "ANSWER_TOKENS", 12)
    monkeypatch.setattr(module, "BATCH", 4)
    monkeypatch.setattr(module, "HELD_OUT", 3)


def prompts_of(tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    assert tokenizer.chat_template is not None
    return [
        tuple(tokenizer.encode(tokenizer.chat_template.render(p.messages, add_generation_prompt=True)))
        for p in PROMPTS
    ]


def beginnings(windows: tuple[tuple[int, ...], ...], prompts: list[tuple[int, ...]]) -> list[int]:
    """Which prompt each window begins with."""
    return [next(i for i, p in enumerate(prompts) if window[: len(p)] == p) for window in windows]


# --- the model's own answers


@pytest.mark.usefixtures("few_prompts")
def test_the_model_answers_the_prompts_and_every_third_is_held_out(
    small_dir: Path, tokenizer: Tokenizer
) -> None:
    prompts = prompts_of(tokenizer)
    asked = sum(map(len, prompts))
    text = calibration_text(load(small_dir), tokenizer, tokens=asked + 10 * 12)
    assert beginnings(text.windows, prompts) == [0, 1, 3, 4, 6, 7, 9]
    assert beginnings(text.held_out, prompts) == [2, 5, 8]
    assert text.source == "self"
    assert text.tokens == asked + 10 * 12
    answers = [window[-12:] for window in text.windows + text.held_out]
    assert len(set(answers)) == len(answers)


@pytest.mark.usefixtures("few_prompts")
def test_more_tokens_than_one_round_gives_are_more_answers_to_the_same_prompts(
    tiny_dir: Path, tokenizer: Tokenizer
) -> None:
    prompts = prompts_of(tokenizer)
    asked = sum(map(len, prompts))
    text = calibration_text(load(tiny_dir), tokenizer, tokens=2 * (asked + 120))
    assert beginnings(text.windows, prompts) == [0, 1, 3, 4, 6, 7, 9] * 2
    assert beginnings(text.held_out, prompts) == [2, 5, 8] * 2  # a prompt is held out as a whole
    assert text.tokens == 2 * (asked + 120)
    assert len(set(text.windows)) == len(text.windows)


@pytest.mark.usefixtures("few_prompts")
def test_fewer_tokens_are_shorter_answers(tiny_dir: Path, tokenizer: Tokenizer) -> None:
    asked = sum(map(len, prompts_of(tokenizer)))
    assert calibration_text(load(tiny_dir), tokenizer, tokens=asked + 55).tokens == asked + 50
    assert calibration_text(load(tiny_dir), tokenizer, tokens=64).tokens == asked + 20


@pytest.mark.usefixtures("few_prompts")
def test_a_model_without_a_chat_template_continues_the_plain_prompts(
    tiny_dir: Path, tokenizer: Tokenizer
) -> None:
    plain = Tokenizer(tokenizer.backend)
    text = calibration_text(load(tiny_dir), plain)
    prompts = [tuple(plain.encode(p.user + "\n")) for p in PROMPTS]
    assert beginnings(text.held_out, prompts)[:3] == beginnings(text.held_out, prompts)[3:6] == [2, 4, 8]


@pytest.mark.usefixtures("few_prompts")
def test_an_answer_ends_at_the_end_token_and_without_it(tiny_dir: Path, tokenizer: Tokenizer) -> None:
    ends = Tokenizer(tokenizer.backend, eos_token_ids=range(0, 288, 2))
    text = calibration_text(load(tiny_dir), ends, tokens=64)
    prompts = [len(ends.encode(PROMPTS[i].user + "\n")) for i in (0, 1, 3, 4, 6, 7, 9)]
    answers = [window[n:] for window, n in zip(text.windows, prompts, strict=True)]
    assert all(token % 2 for answer in answers for token in answer)
    assert len({len(answer) for answer in answers}) > 1


def test_the_built_in_prompts_are_used(tiny_dir: Path, tokenizer: Tokenizer) -> None:
    text = calibration_text(load(tiny_dir), tokenizer, tokens=64)
    assert (len(text.windows), len(text.held_out)) == (56, 8)
    held = [p.user for i, p in enumerate(calibration_prompts()) if i % 8 == 7]
    for user, window in zip(held, text.held_out, strict=True):
        assert user in tokenizer.decode(list(window))


# --- a file


def test_a_file_is_cut_into_windows_and_its_last_eighth_is_held_out(
    tiny_dir: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW", 50)
    path = tmp_path / "text.txt"
    path.write_text("".join(chr(97 + i * i % 26) for i in range(160)))
    ids = tuple(tokenizer.encode(path.read_text()))
    text = calibration_text(load(tiny_dir), tokenizer, path)
    assert text.windows == (ids[:50], ids[50:100], ids[100:140])
    assert text.held_out == (ids[140:],)
    assert text.source == str(path)


def test_only_the_beginning_of_a_long_file_is_read(
    tiny_dir: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    text = "".join(chr(97 + i * i % 26) for i in range(30_000))
    (tmp_path / "long.txt").write_text(text)
    (tmp_path / "short.txt").write_text(text[:200])
    long, short = (
        calibration_text(load(tiny_dir), tokenizer, tmp_path / name, tokens=200)
        for name in ("long.txt", "short.txt")
    )
    assert (long.windows, long.held_out) == (short.windows, short.held_out)
    assert long.tokens == 200


def test_no_window_is_longer_than_the_model_reads(
    small_dir: Path, tokenizer: Tokenizer, text_file: Path
) -> None:
    engine = load(small_dir)
    text = calibration_text(engine, tokenizer, text_file)
    limit = min(module.WINDOW, engine.config.max_position_embeddings)
    assert max(map(len, text.windows + text.held_out)) <= limit


# --- both


@pytest.mark.parametrize("kind", ["self", "file"])
@pytest.mark.usefixtures("few_prompts")
def test_the_same_tokens_for_any_number_of_threads_and_every_time(
    tiny_dir: Path, tokenizer: Tokenizer, text_file: Path, kind: str
) -> None:
    source = "self" if kind == "self" else text_file
    texts = [calibration_text(load(tiny_dir, t), tokenizer, source, tokens=900) for t in (1, 2, 3, 1)]
    assert all(text == texts[0] for text in texts)


@pytest.mark.usefixtures("few_prompts")
def test_it_can_be_kept_as_json(tiny_dir: Path, tokenizer: Tokenizer) -> None:
    text = calibration_text(load(tiny_dir), tokenizer, tokens=64)
    assert CalibrationText.from_json(json.loads(json.dumps(text.to_json()))) == text


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"more": 1},
        {"windows": []},
        {"windows": [[]]},
        {"windows": [[1, -1]]},
        {"windows": [["a"]]},
        {"held_out": {"0": [1]}},
        {"source": None},
    ],
)
def test_json_of_another_kind_is_refused(change: dict[str, Any]) -> None:
    good = CalibrationText(((1, 2), (3,)), ((4,),), "self").to_json()
    with pytest.raises(PomonaError, match=r"kept\.json: is no calibration text of this version"):
        CalibrationText.from_json(good | change, "kept.json")


def test_json_without_a_key_is_refused() -> None:
    raw = CalibrationText(((1, 2),), (), "self").to_json()
    del raw["source"]
    for wrong in (raw, [], None):
        with pytest.raises(PomonaError, match="no calibration text"):
            CalibrationText.from_json(wrong)


@pytest.mark.usefixtures("few_prompts")
def test_progress_grows_to_its_total(tiny_dir: Path, tokenizer: Tokenizer) -> None:
    calls: list[tuple[str, int, int]] = []
    calibration_text(load(tiny_dir), tokenizer, progress=lambda *call: calls.append(call), tokens=400)
    assert {label for label, _, _ in calls} == {"answer"}
    assert len({total for _, _, total in calls}) == 1
    done = [number for _, number, _ in calls]
    assert done == sorted(done)
    assert calls[-1][1] == calls[-1][2] > 0
    assert len(calls) > 2


# --- what can go wrong


BAD_TEXTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "cannot be read as UTF-8 text"),
    "a directory": (os.mkdir, "cannot be read as UTF-8 text"),
    "empty": (Path.touch, "0 tokens are too few to calibrate on; give at least 64"),
    "short": (lambda path: path.write_text("x" * 63), "63 tokens are too few"),
    "not UTF-8": (lambda path: path.write_bytes(b"caf\xe9 " * 100), "cannot be read as UTF-8 text"),
}


@pytest.mark.parametrize("what", BAD_TEXTS)
def test_a_file_that_cannot_be_used_is_one_line_that_names_it(
    tiny_dir: Path, tokenizer: Tokenizer, tmp_path: Path, what: str
) -> None:
    make, words = BAD_TEXTS[what]
    path = tmp_path / "text.txt"
    make(path)
    with pytest.raises(PomonaError, match=words) as caught:
        calibration_text(load(tiny_dir), tokenizer, path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_64_tokens_are_enough(tiny_dir: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("x" * 64)
    text = calibration_text(load(tiny_dir), tokenizer, tmp_path / "text.txt")
    assert [len(window) for window in text.windows + text.held_out] == [56, 8]


def test_fewer_tokens_than_64_are_refused(tiny_dir: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(PomonaError, match="63 calibration tokens are too few; ask for at least 64"):
        calibration_text(load(tiny_dir), tokenizer, tokens=63)


def test_a_tokenizer_larger_than_the_model_is_one_line(
    tiny_dir: Path, smollm2_dir: Path, text_file: Path
) -> None:
    with pytest.raises(PomonaError, match="outside the vocabulary") as caught:
        calibration_text(load(tiny_dir), Tokenizer.from_directory(smollm2_dir), text_file)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("few_prompts")
def test_ctrl_c_gives_the_sequences_back(tiny_dir: Path, tokenizer: Tokenizer) -> None:
    def interrupt(label: str, done: int, total: int) -> None:
        if done > total // 3:
            raise KeyboardInterrupt

    engine = load(tiny_dir)
    free = engine.native.free_tokens
    with pytest.raises(KeyboardInterrupt):
        calibration_text(engine, tokenizer, progress=interrupt)
    assert engine.native.free_tokens == free


@pytest.mark.usefixtures("few_prompts")
def test_a_damaged_model_ends_no_worse_than_in_an_error(
    tiny_dir: Path, tokenizer: Tokenizer, tmp_path: Path, changed: Callable[..., Path]
) -> None:
    """Its answers may be anything; the moments are then refused."""

    def nan(array: NDArray[np.uint16]) -> NDArray[np.uint16]:
        return np.full_like(array, 0x7FC0)

    engine = load(changed(tiny_dir, tmp_path / "m", {"model.layers.0.input_layernorm.weight": nan}))
    free = engine.native.free_tokens
    calibration_text(engine, tokenizer, tokens=64)
    assert engine.native.free_tokens == free
