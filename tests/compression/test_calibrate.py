"""Calibration: the mean squares of every linear layer's inputs, as an independent model measures them.

The independent model is transformers', watched by hooks on its linear layers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pomona.compression import calibrate as module
from pomona.compression.calibrate import calibrate, uniform
from pomona.data.builtin_text import ChatPrompt, calibration_prompts, evaluation_text
from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.tokenizer import Tokenizer
from pomona.runtime.engine import Engine, StepInput
from pomona.runtime.engine import Sequence as EngineSequence

Importance = dict[str, NDArray[np.float32]]


def load(directory: Path, threads: int = 1) -> Engine:
    return Engine.load(directory, threads=threads, kv_tokens=32_768, huge_pages=False)


@pytest.fixture
def tokenizer(byte_tokenizer_dir: Path) -> Tokenizer:
    return Tokenizer.from_directory(byte_tokenizer_dir)


def measured(
    directory: Path, sequences: Sequence[Sequence[int]], *, all_logits: bool = True
) -> dict[str, NDArray[np.float64]]:
    """Mean square of every linear layer's input over all tokens, in float32 torch; scaled to mean 1."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    sums: dict[str, NDArray[np.float64]] = {}

    def watch(name: str) -> Callable[[Any, Any], None]:
        def hook(_: Any, inputs: tuple[torch.Tensor]) -> None:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1])
            if name == "lm_head" and not all_logits:
                rows = rows[:-1]  # scoring a text needs no logits after its last token
            sums[name] = sums.get(name, 0.0) + rows.double().square().sum(0).numpy()

        return hook

    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_pre_hook(watch(name))
    with torch.no_grad():
        for ids in sequences:
            model(torch.tensor([list(ids)]))
    return {name: total / total.mean() for name, total in sums.items()}


def assert_same(
    importance: Importance, expected: Mapping[str, NDArray[np.float64]], tolerance: float
) -> None:
    assert set(importance) == set(expected)
    for name, values in importance.items():
        assert values.dtype == np.float32
        assert values.shape == expected[name].shape
        # Keys and values are bfloat16 in the engine's cache: an error of 2^-9 in what attention adds up.
        np.testing.assert_allclose(
            values, np.maximum(expected[name], 1e-6), rtol=tolerance, atol=tolerance / 10, err_msg=name
        )


# --- what is measured


def test_a_text_gives_the_mean_squares_that_an_independent_model_has(
    small_dir: Path, tokenizer: Tokenizer, text_file: Path
) -> None:
    """The text is longer than a window, which each start afresh."""
    ids = tokenizer.encode(text_file.read_text(encoding="utf-8"))
    assert module.WINDOW < len(ids) < 2 * module.WINDOW
    windows = [ids[: module.WINDOW], ids[module.WINDOW :]]
    importance = calibrate(load(small_dir), tokenizer, text_file)
    assert_same(importance, measured(small_dir, windows, all_logits=False), 0.02)


def test_the_real_model_measures_the_same(smollm2_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(evaluation_text()[:800], encoding="utf-8")
    tokenizer = Tokenizer.from_directory(smollm2_dir)
    ids = tokenizer.encode(path.read_text(encoding="utf-8"))
    assert 100 < len(ids) < 300
    importance = calibrate(Engine.load(smollm2_dir, threads=2), tokenizer, path)
    expected = measured(smollm2_dir, [ids], all_logits=False)
    assert_same(importance, expected, 0.1)
    # This model has columns that count a thousand times as much as others: what calibration is for.
    assert max(values.max() / np.median(values) for values in importance.values()) > 1000


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[int]]]:
    """The token sequences that an engine was given, step by step."""
    sequences: list[list[int]] = []
    open_ones: dict[EngineSequence, list[int]] = {}
    step = Engine.step

    def spy(engine: Engine, inputs: Sequence[StepInput]) -> list[int]:
        for one in inputs:
            if one.sequence not in open_ones:
                sequences.append([])
                open_ones[one.sequence] = sequences[-1]
            open_ones[one.sequence] += one.tokens
        return step(engine, inputs)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", spy)
        yield sequences


PROMPTS = [
    ChatPrompt("a", f"Say {word}.", system)
    for word in ("one", "two", "three", "four", "five")
    for system in (None, "Be kind.")
]


@pytest.fixture
def few_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten short prompts, answers of 12 tokens, 4 sequences together."""
    monkeypatch.setattr(module, "calibration_prompts", lambda: PROMPTS)
    monkeypatch.setattr(module, "ANSWER_TOKENS", 12)
    monkeypatch.setattr(module, "BATCH", 4)


@pytest.mark.usefixtures("few_prompts")
def test_self_calibration_watches_the_model_answer_the_prompts(
    small_dir: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recorded(monkeypatch) as sequences:
        importance = calibrate(load(small_dir), tokenizer)
    assert tokenizer.chat_template is not None
    prompts = [
        tokenizer.encode(tokenizer.chat_template.render(p.messages, add_generation_prompt=True))
        for p in PROMPTS
    ]
    assert [sequence[: len(prompt)] for sequence, prompt in zip(sequences, prompts, strict=True)] == prompts
    answers = [tuple(sequence[len(prompt) :]) for sequence, prompt in zip(sequences, prompts, strict=True)]
    assert {len(answer) for answer in answers} == {11}  # the twelfth is sampled and not read
    assert len(set(answers)) == len(answers)
    # The head is seen where a token is sampled.
    expected = measured(small_dir, sequences)
    heads = {name: values for name, values in importance.items() if name != "lm_head"}
    del expected["lm_head"]
    assert_same(heads, expected, 0.05)
    assert importance["lm_head"].mean() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.usefixtures("few_prompts")
def test_a_model_without_a_chat_template_continues_the_plain_prompts(
    tiny_dir: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Tokenizer(tokenizer.backend)
    with recorded(monkeypatch) as sequences:
        calibrate(load(tiny_dir), plain)
    prompts = [plain.encode(p.user + "\n") for p in PROMPTS]
    assert [sequence[: len(prompt)] for sequence, prompt in zip(sequences, prompts, strict=True)] == prompts


@pytest.mark.usefixtures("few_prompts")
def test_an_answer_ends_at_the_end_token(
    tiny_dir: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = Tokenizer(tokenizer.backend, eos_token_ids=range(0, 288, 2))
    with recorded(monkeypatch) as sequences:
        calibrate(load(tiny_dir), ends)
    answers = [
        sequence[len(ends.encode(p.user + "\n")) :] for sequence, p in zip(sequences, PROMPTS, strict=True)
    ]
    assert all(token % 2 for answer in answers for token in answer)
    assert len({len(answer) for answer in answers}) > 2


def test_the_built_in_prompts_are_used(
    tiny_dir: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_TOKENS", 2)
    with recorded(monkeypatch) as sequences:
        calibrate(load(tiny_dir), tokenizer)
    texts = [tokenizer.decode(sequence[:-1]) for sequence in sequences]
    assert len(texts) == len(calibration_prompts()) == 64
    assert all(p.user in text for p, text in zip(calibration_prompts(), texts, strict=True))


# --- what comes out


def test_every_linear_layer_and_the_head_have_an_importance_of_mean_1(
    small_dir: Path, tokenizer: Tokenizer, text_file: Path
) -> None:
    config = ModelConfig.from_directory(small_dir)
    importance = calibrate(load(small_dir), tokenizer, text_file)
    assert list(importance) == [*config.linear_shapes(), "lm_head"]
    columns = {
        **{name: shape[1] for name, shape in config.linear_shapes().items()},
        "lm_head": config.hidden_size,
    }
    assert {name: values.shape for name, values in importance.items()} == {
        name: (n,) for name, n in columns.items()
    }
    for name, values in importance.items():
        assert values.mean() == pytest.approx(1.0, abs=1e-3), name
        assert (values > 0).all()
        for other, source in (("k_proj", "q_proj"), ("v_proj", "q_proj"), ("up_proj", "gate_proj")):
            if name.endswith(other):  # they read the same input
                np.testing.assert_array_equal(values, importance[name.replace(other, source)])


@pytest.mark.parametrize("text", ["self", "file"])
@pytest.mark.usefixtures("few_prompts")
def test_the_same_bits_for_any_number_of_threads(
    tiny_dir: Path, tokenizer: Tokenizer, text_file: Path, text: str
) -> None:
    results = [
        calibrate(load(tiny_dir, threads), tokenizer, text if text == "self" else text_file)
        for threads in (1, 2, 3, 1)
    ]
    for other in results[1:]:
        assert {name: values.tobytes() for name, values in other.items()} == {
            name: values.tobytes() for name, values in results[0].items()
        }


def test_a_second_calibration_does_not_remember_the_first(
    tiny_dir: Path, tokenizer: Tokenizer, text_file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("0123456789 " * 40)
    engine = load(tiny_dir)
    first = calibrate(engine, tokenizer, text_file)
    engine.score(tokenizer.encode("words in between, which count for nothing"))
    between = calibrate(engine, tokenizer, other)
    again = calibrate(engine, tokenizer, text_file)
    assert any((first[name] != between[name]).any() for name in first)
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])


def test_only_the_beginning_of_a_long_text_is_read(
    tiny_dir: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TEXT_TOKENS", 200)
    text = "".join(chr(97 + i * i % 26) for i in range(300))
    (tmp_path / "long.txt").write_text(text)
    (tmp_path / "short.txt").write_text(text[:200])
    long, short = (
        calibrate(load(tiny_dir), tokenizer, tmp_path / name) for name in ("long.txt", "short.txt")
    )
    for name in long:
        np.testing.assert_array_equal(long[name], short[name])


def test_a_column_that_is_never_used_keeps_a_little(
    tiny_dir: Path, tokenizer: Tokenizer, text_file: Path, tmp_path: Path, changed: Callable[..., Path]
) -> None:
    def silence(array: NDArray[np.uint16]) -> NDArray[np.uint16]:
        array[7] = 0
        return array

    names = {
        "model.layers.0.input_layernorm.weight": silence,
        "model.layers.1.input_layernorm.weight": np.zeros_like,
    }
    importance = calibrate(load(changed(tiny_dir, tmp_path / "m", names)), tokenizer, text_file)
    first, second = (importance[f"model.layers.{layer}.self_attn.q_proj"] for layer in (0, 1))
    assert first[7] == np.float32(1e-6)
    assert (np.delete(first, 7) > 1e-6).all()
    assert (second == 1).all()  # a layer that is silent as a whole: all alike


def test_uniform_importance_has_the_same_names_and_sizes(
    small_dir: Path, tokenizer: Tokenizer, text_file: Path
) -> None:
    plain = uniform(ModelConfig.from_directory(small_dir))
    importance = calibrate(load(small_dir), tokenizer, text_file)
    assert list(plain) == list(importance)
    for name, values in plain.items():
        assert values.shape == importance[name].shape
        assert (values == 1).all()


@pytest.mark.parametrize("text", ["self", "file"])
@pytest.mark.usefixtures("few_prompts")
def test_progress_grows_to_its_total(
    tiny_dir: Path, tokenizer: Tokenizer, text_file: Path, text: str
) -> None:
    calls: list[tuple[str, int, int]] = []
    calibrate(
        load(tiny_dir),
        tokenizer,
        text if text == "self" else text_file,
        progress=lambda *call: calls.append(call),
    )
    assert {label for label, _, _ in calls} == {"calibrate"}
    assert len({total for _, _, total in calls}) == 1
    done = [number for _, number, _ in calls]
    assert done == sorted(done)
    assert calls[-1][1] == calls[-1][2] > 0
    assert len(calls) > 2


# --- what can go wrong


def assert_untouched(engine: Engine, free: int) -> None:
    """No sequence is left open, and the engine has stopped watching."""
    assert engine.native.free_tokens == free
    before = {name: (squares.copy(), rows) for name, (squares, rows) in engine.native.moments().items()}
    engine.score([1, 2, 3])
    for name, (squares, rows) in engine.native.moments().items():
        np.testing.assert_array_equal(squares, before[name][0])
        assert rows == before[name][1]


BAD_TEXTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "cannot be read as UTF-8 text"),
    "a directory": (os.mkdir, "cannot be read as UTF-8 text"),
    "empty": (Path.touch, "0 tokens are too few to calibrate on; give at least 64"),
    "short": (lambda path: path.write_text("x" * 63), "63 tokens are too few"),
    "not UTF-8": (lambda path: path.write_bytes(b"caf\xe9 " * 100), "cannot be read as UTF-8 text"),
}


@pytest.mark.parametrize("what", BAD_TEXTS)
def test_a_text_that_cannot_be_used_is_one_line_that_names_it(
    tiny_dir: Path, tokenizer: Tokenizer, tmp_path: Path, what: str
) -> None:
    make, words = BAD_TEXTS[what]
    path = tmp_path / "text.txt"
    make(path)
    engine = load(tiny_dir)
    free = engine.native.free_tokens
    with pytest.raises(PomonaError, match=words) as caught:
        calibrate(engine, tokenizer, path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert_untouched(engine, free)


def test_64_tokens_are_enough(tiny_dir: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("x" * 64)
    assert calibrate(load(tiny_dir), tokenizer, str(tmp_path / "text.txt"))


@pytest.mark.parametrize("text", ["self", "file"])
@pytest.mark.usefixtures("few_prompts")
def test_ctrl_c_leaves_the_engine_usable(
    tiny_dir: Path, tokenizer: Tokenizer, text_file: Path, text: str
) -> None:
    def interrupt(label: str, done: int, total: int) -> None:
        if done > total // 3:
            raise KeyboardInterrupt

    engine = load(tiny_dir)
    free = engine.native.free_tokens
    with pytest.raises(KeyboardInterrupt):
        calibrate(engine, tokenizer, text if text == "self" else text_file, progress=interrupt)
    assert_untouched(engine, free)


@pytest.mark.usefixtures("few_prompts")
def test_sequences_are_given_back(tiny_dir: Path, tokenizer: Tokenizer) -> None:
    engine = load(tiny_dir)
    free = engine.native.free_tokens
    calibrate(engine, tokenizer)
    assert_untouched(engine, free)


@pytest.mark.parametrize("text", ["self", "file"])
@pytest.mark.usefixtures("few_prompts")
def test_a_model_that_computes_nan_is_refused(
    tiny_dir: Path,
    tokenizer: Tokenizer,
    text_file: Path,
    tmp_path: Path,
    changed: Callable[..., Path],
    text: str,
) -> None:
    damaged = changed(
        tiny_dir,
        tmp_path / "m",
        {"model.layers.0.input_layernorm.weight": lambda array: np.full_like(array, 0x7FC0)},
    )
    engine = load(damaged)
    free = engine.native.free_tokens
    with pytest.raises(PomonaError, match="not finite; the checkpoint is damaged"):
        calibrate(engine, tokenizer, text if text == "self" else text_file)
    assert_untouched(engine, free)


def test_a_tokenizer_larger_than_the_model_is_one_line(
    tiny_dir: Path, smollm2_dir: Path, text_file: Path
) -> None:
    engine = load(tiny_dir)
    free = engine.native.free_tokens
    with pytest.raises(PomonaError, match="outside the vocabulary") as caught:
        calibrate(engine, Tokenizer.from_directory(smollm2_dir), text_file)
    assert "\n" not in str(caught.value)
    assert_untouched(engine, free)
