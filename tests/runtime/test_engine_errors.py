"""What the engine refuses: bad steps change no sequence, bad directories and options give one line that says
which.

A refused step is checked by what it must not do: lengths, free cache and all later results stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_directories import Tensors, rewritten
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pomona import _native
from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.random_init import random_model
from pomona.runtime.engine import BATCH_TOKENS, Engine, Sequence, StepInput

TINY = ModelConfig(
    model_type="qwen3",
    vocab_size=320,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=32,
    max_position_embeddings=1040,
    rope_theta=10_000.0,
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
)
KV_TOKENS = 1280


@pytest.fixture(scope="module")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(TINY, tmp_path_factory.mktemp("errors") / "tiny", seed=4, perturb_norms=True)


@pytest.fixture(scope="module")
def engine(tiny_dir: Path) -> Engine:
    return Engine.load(tiny_dir, threads=1, kv_tokens=KV_TOKENS)


@dataclass
class Bench:
    """An engine with two sequences of known content, and what they are to compute next."""

    engine: Engine
    first: Sequence
    second: Sequence

    def state(self) -> tuple[int, int, int, list[list[int]]]:
        """Lengths, free cache, and how both sequences would go on for three tokens."""
        before = (self.first.length, self.second.length, self.engine.native.free_tokens)
        answers = []
        for sequence in (self.first, self.second):
            length, tokens, answer = sequence.length, [5], list[int]()
            for _ in range(3):
                tokens = self.engine.step([StepInput(sequence, tokens)])
                answer += tokens
            sequence.truncate(length)
            answers.append(answer)
        return (*before, answers)


@pytest.fixture
def bench(engine: Engine) -> Iterator[Bench]:
    with engine.new_sequence() as first, engine.new_sequence() as second:
        engine.step([StepInput(first, list(range(37))), StepInput(second, list(range(50, 70)))])
        yield Bench(engine, first, second)
    assert engine.native.free_tokens == KV_TOKENS


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text and len(text) < 600
    return text


# --- steps --------------------------------------------------------------------------------------------------

Inputs = Callable[[Bench], list[StepInput]]
BAD_STEPS: dict[str, tuple[Inputs, str]] = {
    "token of the size of the vocabulary": (
        lambda b: [StepInput(b.first, [1, 320])],
        "320 is outside the voc",
    ),
    "negative token": (
        lambda b: [StepInput(b.first, [1]), StepInput(b.second, [2, -1])],
        "-1 is outside the voc",
    ),
    "token beyond 32 bits": (lambda b: [StepInput(b.first, [1, 2**40])], "outside the vocabulary"),
    "bad token in the second native step": (
        lambda b: [StepInput(b.first, [1] * 600), StepInput(b.second, [1] * 100 + [999])],
        "999 is outside the vocabulary",
    ),
    "no tokens": (lambda b: [StepInput(b.first, [1]), StepInput(b.second, [])], "without tokens"),
    "no tokens beside a long prompt": (
        lambda b: [StepInput(b.first, [1] * 600), StepInput(b.second, [])],
        "without tokens",
    ),
    "twice": (lambda b: [StepInput(b.first, [1]), StepInput(b.first, [2])], "twice"),
    "twice, together too long": (
        lambda b: [StepInput(b.first, [1] * 400), StepInput(b.first, [2] * 400)],
        "twice",
    ),
    "twice, the first fills a native step": (
        lambda b: [StepInput(b.first, [1] * BATCH_TOKENS), StepInput(b.first, [2])],
        "twice",
    ),
    "context": (lambda b: [StepInput(b.second, [1]), StepInput(b.first, [1] * 1004)], "1040 positions"),
    "cache": (lambda b: [StepInput(b.first, [1] * 900), StepInput(b.second, [1] * 400)], "cache is full"),
}


@pytest.mark.parametrize("name", BAD_STEPS)
def test_a_bad_step_is_refused_and_changes_nothing(bench: Bench, name: str) -> None:
    inputs, message = BAD_STEPS[name]
    before = bench.state()
    with pytest.raises(PomonaError, match=message) as caught:
        bench.engine.step(inputs(bench))
    one_line(caught.value)
    assert bench.state() == before


def test_the_limits_themselves_are_allowed(bench: Bench) -> None:
    bench.engine.step([StepInput(bench.first, [1] * 1003), StepInput(bench.second, [1] * 220)])
    assert bench.first.length == TINY.max_position_embeddings and bench.second.length == 240
    assert bench.engine.native.free_tokens == 0
    with pytest.raises(PomonaError, match="positions"):
        bench.engine.step([StepInput(bench.first, [1])])
    with pytest.raises(PomonaError, match="larger kv_tokens"):
        bench.engine.step([StepInput(bench.second, [1])])
    bench.first.truncate(0)
    bench.engine.step([StepInput(bench.second, [1])])


def test_no_inputs_are_no_work(bench: Bench) -> None:
    before = bench.state()
    assert bench.engine.step([]) == []
    assert bench.state() == before


def test_a_closed_sequence_is_refused(bench: Bench) -> None:
    before = bench.state()
    closed = bench.engine.new_sequence()
    closed.close()
    closed.close()  # once more is nothing
    with pytest.raises(ValueError, match="closed"):
        bench.engine.step([StepInput(bench.first, [1]), StepInput(closed, [1])])
    with pytest.raises(ValueError, match="closed"):
        bench.engine.step([StepInput(bench.first, [1] * 600), StepInput(closed, [1])])
    for use in (lambda: closed.length, lambda: closed.truncate(0)):
        with pytest.raises(ValueError, match="closed"):
            use()
    assert bench.state() == before


def test_a_sequence_of_another_engine_is_refused(bench: Bench, tiny_dir: Path) -> None:
    before = bench.state()
    other = Engine.load(tiny_dir, threads=1, kv_tokens=64)
    with other.new_sequence() as foreign, pytest.raises((PomonaError, ValueError), match="engine"):
        bench.engine.step([StepInput(foreign, [1, 2, 3])])
    assert bench.state() == before


@pytest.mark.parametrize("length", [-1, 38, 10**6])
def test_truncate_keeps_to_the_length(bench: Bench, length: int) -> None:
    before = bench.state()
    with pytest.raises((PomonaError, ValueError), match="37"):
        bench.first.truncate(length)
    assert bench.state() == before


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "no tokens"),
        ([320], "outside the vocabulary"),
        ([3, -1], "outside the vocabulary"),
        ([2**40, 1], "outside the vocabulary"),
        (np.array([1, 2**40]), "outside the vocabulary"),
        ([1.5, 2.0], "token"),
        (["apple"], "token"),
        ([[1, 2], [3, 4]], "token"),
        ([1] * 1041, "positions"),
    ],
)
@pytest.mark.parametrize("method", ["logits", "score"])
def test_logits_and_scores_want_token_ids(bench: Bench, method: str, ids: Any, message: str) -> None:
    before = bench.state()
    with pytest.raises(PomonaError, match=message) as caught:
        getattr(bench.engine, method)(ids)
    one_line(caught.value)
    assert bench.state() == before  # the sequence that it made inside is closed again


def test_logits_in_a_cache_that_others_hold_say_what_to_do(tiny_dir: Path) -> None:
    engine = Engine.load(tiny_dir, threads=1, kv_tokens=64)
    with engine.new_sequence() as holder:
        engine.step([StepInput(holder, [1] * 50)])
        with pytest.raises(PomonaError, match="close sequences"):
            engine.logits([1])
    assert engine.logits([1]).shape == (1, 320)


def test_a_truncation_without_room_for_its_copy_is_refused_whole(tiny_dir: Path) -> None:
    """To cut a sequence in the middle of a page that another one shares takes a page for the copy."""
    engine = Engine.load(tiny_dir, threads=1, kv_tokens=80, prefix_cache=True)
    prompt = list(range(48))
    with engine.new_sequence() as one, engine.new_sequence() as other, engine.new_sequence() as third:
        for sequence, tokens in ((one, prompt), (other, prompt), (third, [1] * 17)):
            engine.step([StepInput(sequence, tokens)])
        assert engine.native.free_tokens == 0
        with pytest.raises(PomonaError, match="page"):
            one.truncate(20)
        assert one.length == 48
        other.close()
        third.close()
        with engine.new_sequence() as later:
            engine.step([StepInput(later, [9] * 17)])
        out = np.empty((1, TINY.vocab_size), np.float32)
        engine.native.logits(one.handle, np.array([7], np.int32), out)
    assert np.array_equal(out, engine.logits([*prompt, 7])[-1:])


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_step_breaks_the_engine(engine: Engine, data: st.DataObject) -> None:
    """Steps and truncations at random, half of them wrong: each works or is refused whole."""
    sequences = [engine.new_sequence() for _ in range(3)]
    closed = engine.new_sequence()
    closed.close()
    sizes = st.sampled_from([1, 2, 15, 16, 200, 511, 512, 513, 700])
    good = st.builds(lambda token, size: [token] * size, st.integers(0, TINY.vocab_size - 1), sizes)
    faults: list[list[StepInput]] = [
        [],
        [],
        [],
        [StepInput(sequences[0], [1]), StepInput(sequences[0], [2])],
        [StepInput(sequences[1], [])],
        [StepInput(sequences[2], [3, TINY.vocab_size])],
        [StepInput(sequences[2], [-1])],
        [StepInput(closed, [1])],
    ]
    try:
        for _ in range(data.draw(st.integers(1, 5))):
            members = data.draw(st.lists(st.sampled_from(sequences), max_size=3, unique=True))
            inputs = [StepInput(sequence, data.draw(good)) for sequence in members]
            inputs = data.draw(st.permutations(inputs + data.draw(st.sampled_from(faults))))
            lengths = [s.length for s in sequences]
            grown = {id(i.sequence): len(i.tokens) for i in inputs}
            expected = [n + grown.get(id(s), 0) for n, s in zip(lengths, sequences, strict=True)]
            fits = max(expected) <= TINY.max_position_embeddings
            fits = fits and sum((n + 15) // 16 * 16 for n in expected) <= KV_TOKENS
            try:
                sampled = engine.step(inputs)
            except (PomonaError, ValueError) as error:
                assert not (fits and len(inputs) == len(members)), one_line(error)
                assert [s.length for s in sequences] == lengths
            else:
                assert len(sampled) == len(inputs) == len(members) and fits
                assert all(0 <= token < TINY.vocab_size for token in sampled)
                assert [s.length for s in sequences] == expected
            cut = data.draw(st.sampled_from(sequences))
            cut.truncate(data.draw(st.integers(0, cut.length)))
        pages = sum((s.length + 15) // 16 for s in sequences)
        assert engine.native.free_tokens == KV_TOKENS - 16 * pages
    finally:
        for sequence in sequences:
            sequence.close()
    assert engine.native.free_tokens == KV_TOKENS


# --- options ------------------------------------------------------------------------------------------------


def test_an_unknown_instruction_set_lists_those_that_exist(tiny_dir: Path) -> None:
    with pytest.raises(PomonaError, match="instruction set 'mmx' is not available here") as caught:
        Engine.load(tiny_dir, isa="mmx")
    text = one_line(caught.value)
    assert _native.available_isas() in text and "auto" in text
    assert "pull or compress" not in text  # the model is sound


@pytest.mark.parametrize(
    "options",
    [{"threads": -1}, {"threads": 5000}, {"kv_tokens": -1}, {"kv_tokens": 2**31}, {"kv_tokens": 2**40}],
    ids=str,
)
def test_an_option_out_of_range_is_named(tiny_dir: Path, options: dict[str, int]) -> None:
    with pytest.raises(PomonaError, match=next(iter(options))) as caught:
        Engine.load(tiny_dir, **options)  # type: ignore[arg-type]
    assert "pull or compress" not in one_line(caught.value)


# --- model directories --------------------------------------------------------------------------------------


def _set(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(raw: dict[str, Any]) -> None:
        raw[key] = value

    return change


def _reshape(name: str, *shape: int) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        dtype, array = tensors[name]
        tensors[name] = (dtype, np.resize(array, shape))

    return change


def _retype(name: str, dtype: str, kind: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name] = (dtype, np.zeros(tensors[name][1].shape, kind))

    return change


def _add(name: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name] = ("BF16", np.zeros((3, 5), np.uint16))

    return change


def _drop(name: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        del tensors[name]

    return change


Q = "model.layers.1.self_attn.q_proj.weight"
BAD_TENSORS: dict[str, tuple[Callable[[Tensors], None], str]] = {
    "missing matrix": (_drop(Q), f"'{Q}' is missing"),
    "missing norm": (_drop("model.norm.weight"), "'model.norm.weight' is missing"),
    "missing head": (_drop("lm_head.weight"), "'lm_head.weight' is missing"),
    "unexpected": (_add("model.layers.1.self_attn.q_proj.bias"), "q_proj.bias' is not part of this arch"),
    "layer too many": (_add("model.layers.2.mlp.up_proj.weight"), "layers.2.mlp.up_proj.weight' is not part"),
    "matrix of another shape": (_reshape(Q, 64, 63), rf"'{Q}' has shape \[64, 63\].*\[64, 64\]"),
    "flat matrix": (_reshape(Q, 64 * 64), rf"'{Q}' has shape \[4096\]"),
    "short norm": (_reshape("model.norm.weight", 63), r"'model.norm.weight' has shape \[63\]"),
    "float matrix": (_retype(Q, "F32", "float32"), f"'{Q}' has an unexpected data type"),
    "integer norm": (_retype("model.norm.weight", "I8", "int8"), "'model.norm.weight' must be"),
    "strange type": (_retype("model.norm.weight", "I64", "int64"), "I64"),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_tensors_that_do_not_fit_are_named(tiny_dir: Path, tmp_path: Path, name: str) -> None:
    change, message = BAD_TENSORS[name]
    directory = rewritten(tiny_dir, tmp_path / "bad", tensors=change)
    with pytest.raises(PomonaError, match=message) as caught:
        Engine.load(directory, threads=1)
    assert str(directory) in one_line(caught.value)


def _indices(tensors: Tensors) -> str:
    return next(name for name in sorted(tensors) if name.endswith("q_proj.weight_indices"))


def _drop_part(part: str) -> Callable[[Tensors], None]:
    return lambda tensors: _drop(_indices(tensors).replace("indices", part))(tensors)


def _reshape_part(part: str, *shape: int) -> Callable[[Tensors], None]:
    return lambda tensors: _reshape(_indices(tensors).replace("indices", part), *shape)(tensors)


def _both_forms(tensors: Tensors) -> None:
    name = _indices(tensors).removesuffix("_indices")
    tensors[name] = ("BF16", np.zeros((16, 64), np.uint16))


BAD_PARTS: dict[str, tuple[Callable[[Tensors], None], str]] = {
    "no tables": (_drop_part("tables"), "weight_tables"),
    "no table scales": (_drop_part("table_scales"), "weight_table_scales' is missing"),
    "no row scales": (_drop_part("row_scales"), "weight_row_scales' is missing"),
    "indices of another shape": (_reshape_part("indices", 1, 2, 64), "weight_indices' has shape"),
    "tables of eight": (_reshape_part("tables", 4, 1, 8), "weight_indices' has shape"),
    "three tables": (_reshape_part("tables", 4, 3, 16), "weight_tables'"),
    "stored twice": (_both_forms, "q_proj.weight' is not part of this architecture"),
}


@pytest.mark.parametrize("name", BAD_PARTS)
def test_packed_parts_that_do_not_fit_are_named(small_4bit_dir: Path, tmp_path: Path, name: str) -> None:
    change, message = BAD_PARTS[name]
    directory = rewritten(small_4bit_dir, tmp_path / "bad", tensors=change)
    with pytest.raises(PomonaError, match=message) as caught:
        Engine.load(directory, threads=1)
    assert str(directory) in one_line(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("4 bits", "quantization"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "palettized"}, "version"),
        ({"quant_method": "palettized", "version": 2, "base_fingerprint": "a", "bits": {}}, "version 2"),
        ({"quant_method": "palettized", "version": 1, "bits": {}}, "base_fingerprint"),
        ({"quant_method": "palettized", "version": 1, "base_fingerprint": "a", "bits": {"x": 5}}, "bits"),
        (
            {
                "quant_method": "palettized",
                "version": 1,
                "base_fingerprint": "a",
                "bits": {},
                "group_size": 32,
            },
            "group_size",
        ),
    ],
)
def test_a_corrupted_quantization_config_is_refused(
    small_4bit_dir: Path, tmp_path: Path, value: Any, message: str
) -> None:
    directory = rewritten(small_4bit_dir, tmp_path / "bad", config=_set("quantization_config", value))
    with pytest.raises(PomonaError, match=message) as caught:
        Engine.load(directory, threads=1)
    assert str(directory) in one_line(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights_are_refused(small_4bit_dir: Path, tmp_path: Path, share: float) -> None:
    directory = rewritten(small_4bit_dir, tmp_path / "bad")
    weights = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(weights[: int(len(weights) * share)])
    with pytest.raises(PomonaError) as caught:
        Engine.load(directory, threads=1)
    assert str(directory) in one_line(caught.value)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(tiny_dir: Path, tmp_path: Path, missing: str) -> None:
    directory = rewritten(tiny_dir, tmp_path / "bad")
    (directory / missing).unlink()
    with pytest.raises(PomonaError) as caught:
        Engine.load(directory, threads=1)
    assert str(directory) in one_line(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 3),
        ("vocab_size", 336),
        ("intermediate_size", 64),
        ("head_dim", 64),
        ("model_type", "llama"),
    ],
)
def test_a_config_that_is_not_this_models_is_refused(
    tiny_dir: Path, tmp_path: Path, key: str, value: Any
) -> None:
    directory = rewritten(tiny_dir, tmp_path / "bad", config=_set(key, value))
    with pytest.raises(PomonaError) as caught:
        Engine.load(directory, threads=1)
    assert str(directory) in one_line(caught.value)
