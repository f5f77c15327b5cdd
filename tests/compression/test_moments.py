"""Second moments of the linear layers' inputs, as an independent model measures them.

The independent model is transformers', watched by hooks on its linear layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pomona.compression import moments as module
from pomona.compression.moments import InputMoments, collect_moments, stream_moments
from pomona.data.builtin_text import evaluation_text
from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.tokenizer import Tokenizer
from pomona.runtime.engine import Engine


def load(directory: Path, threads: int = 1) -> Engine:
    return Engine.load(directory, threads=threads, kv_tokens=4096, huge_pages=False)


def some_windows(*lengths: int, vocabulary: int = 288) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, vocabulary, length).tolist() for length in lengths]


WINDOWS = some_windows(600, 40, 1)  # more than one step, and less


def measured(directory: Path, windows: Sequence[Sequence[int]]) -> dict[str, NDArray[np.float64]]:
    """x^T x / T of every linear layer's input over all tokens; the model in float32, the sums in float64."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    sums: dict[str, Any] = {}

    def watch(name: str) -> Callable[[Any, Any], None]:
        def hook(_: Any, inputs: tuple[torch.Tensor]) -> None:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
            sums[name] = sums.get(name, 0.0) + (rows.T @ rows).numpy()

        return hook

    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_pre_hook(watch(name))
    with torch.no_grad():
        for ids in windows:
            model(torch.tensor([list(ids)]))
    return {name: total / sum(map(len, windows)) for name, total in sums.items()}


def assert_same(
    moments: Mapping[str, InputMoments], expected: Mapping[str, NDArray[np.float64]], tolerance: float
) -> None:
    assert set(moments) == set(expected)
    for name, moment in moments.items():
        assert moment.full is not None
        assert moment.full.dtype == np.float32
        assert moment.full.shape == expected[name].shape
        # Relative to the sizes of the two columns: what they have in common may cancel.
        size = np.sqrt(np.outer(expected[name].diagonal(), expected[name].diagonal())) + 1e-12
        assert np.abs((moment.full - expected[name]) / size).max() < tolerance, name
        np.testing.assert_allclose(moment.full.diagonal(), moment.diagonal, rtol=1e-5)


# --- what is measured


def test_they_are_those_of_an_independent_model(small_dir: Path) -> None:
    windows = some_windows(600, 40, 1, vocabulary=ModelConfig.from_directory(small_dir).vocab_size)
    # Keys and values are bfloat16 in the engine's cache.
    assert_same(collect_moments(load(small_dir), windows, full=True), measured(small_dir, windows), 0.02)


def test_the_real_model_measures_the_same(smollm2_dir: Path) -> None:
    ids = Tokenizer.from_directory(smollm2_dir).encode(evaluation_text()[:800])
    assert 100 < len(ids) < 300
    modules = [
        f"model.layers.{layer}.mlp.{name}" for layer in (0, 12, 29) for name in ("up_proj", "down_proj")
    ]
    moments = collect_moments(load(smollm2_dir), [ids], full=True, modules=modules)
    expected = measured(smollm2_dir, [ids])
    assert_same(moments, {name: expected[name] for name in modules}, 0.1)
    # This model has columns that count a thousand times as much as others: what calibration is for.
    assert max(m.diagonal.max() / np.median(m.diagonal) for m in moments.values()) > 1000


def test_the_products_are_those_of_numpy(tiny_dir: Path) -> None:
    """The input of the first layer is known: the normed embedding."""
    from pomona.models.safetensors_file import Checkpoint, float32_from_bf16

    ids = WINDOWS[0]
    engine = load(tiny_dir)
    name = "model.layers.0.self_attn.q_proj"
    moment = collect_moments(engine, [ids], full=True, modules=[name])[name]
    with Checkpoint(tiny_dir) as checkpoint:
        embedding = float32_from_bf16(checkpoint.array("model.embed_tokens.weight")).astype(np.float64)
        norm = float32_from_bf16(checkpoint.array("model.layers.0.input_layernorm.weight"))
    x = embedding[ids]
    x = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + engine.config.rms_norm_eps) * norm
    expected = x.T @ x / len(ids)
    assert moment.rows == len(ids)
    np.testing.assert_allclose(moment.full, expected, rtol=0, atol=2e-6 * expected.diagonal().max())
    np.testing.assert_allclose(moment.diagonal, expected.diagonal(), rtol=1e-5)


def test_the_diagonal_alone_is_the_same_diagonal(tiny_dir: Path) -> None:
    engine = load(tiny_dir)
    full, diagonal = (collect_moments(engine, WINDOWS, full=full) for full in (True, False))
    assert list(full) == list(diagonal) == [*engine.config.linear_shapes(), "lm_head"]
    for name, moment in diagonal.items():
        assert moment.full is None
        assert moment.rows == full[name].rows == 641
        np.testing.assert_array_equal(moment.diagonal, full[name].diagonal)


def test_modules_that_read_the_same_input_share_their_moments(tiny_dir: Path) -> None:
    moments = collect_moments(load(tiny_dir), WINDOWS, full=True)
    for name, moment in moments.items():
        for other, source in (("k_proj", "q_proj"), ("v_proj", "q_proj"), ("up_proj", "gate_proj")):
            if name.endswith(other):
                assert moment is moments[name.replace(other, source)]


def test_layers_one_by_one_give_the_bits_of_all_together(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(tiny_dir)
    together = list(stream_moments(engine, WINDOWS, full=True))
    assert len(together) == 1
    monkeypatch.setattr(module, "MEMORY", 1)
    parts = list(stream_moments(engine, WINDOWS, full=True))
    assert [len(part) for part in parts] == [7, 7, 1]
    for part in parts:
        for name, moment in part.items():
            assert together[0][name].full is not None
            np.testing.assert_array_equal(moment.full, together[0][name].full)


def test_some_modules_are_those_of_all(tiny_dir: Path) -> None:
    engine = load(tiny_dir)
    wanted = ["model.layers.1.mlp.up_proj", "lm_head", "model.layers.0.self_attn.v_proj"]
    some, every = (
        collect_moments(engine, WINDOWS, full=True, modules=wanted),
        collect_moments(engine, WINDOWS, full=True),
    )
    assert set(some) == set(wanted)
    for name in wanted:
        np.testing.assert_array_equal(some[name].full, every[name].full)
    assert collect_moments(engine, WINDOWS, full=True, modules=[]) == {}


@pytest.mark.parametrize("full", [True, False])
def test_the_same_bits_for_any_number_of_threads(tiny_dir: Path, full: bool) -> None:
    first = collect_moments(load(tiny_dir, 1), WINDOWS, full=full)
    for threads in (2, 3):
        for name, moment in collect_moments(load(tiny_dir, threads), WINDOWS, full=full).items():
            np.testing.assert_array_equal(moment.diagonal, first[name].diagonal)
            np.testing.assert_array_equal(moment.full, first[name].full)


def test_it_remembers_nothing_and_watches_nothing_else(tiny_dir: Path) -> None:
    engine = load(tiny_dir)
    free = engine.native.free_tokens
    first = collect_moments(engine, WINDOWS, full=True)
    engine.score([1, 2, 3])
    collect_moments(engine, some_windows(5, 6, 7), full=False)
    again = collect_moments(engine, WINDOWS, full=True)
    for name in first:
        np.testing.assert_array_equal(first[name].full, again[name].full)
    assert engine.native.free_tokens == free


# --- what becomes of them


def test_a_column_that_is_never_used_keeps_a_little_importance(
    tiny_dir: Path, tmp_path: Path, changed: Callable[..., Path]
) -> None:
    def silence(array: NDArray[np.uint16]) -> NDArray[np.uint16]:
        array[7] = 0
        return array

    names = {
        "model.layers.0.input_layernorm.weight": silence,
        "model.layers.1.input_layernorm.weight": np.zeros_like,
    }
    moments = collect_moments(load(changed(tiny_dir, tmp_path / "m", names)), WINDOWS, full=False)
    first, second = (moments[f"model.layers.{layer}.self_attn.q_proj"].importance() for layer in (0, 1))
    assert first.mean() == pytest.approx(1.0, abs=1e-3)
    assert first[7] == np.float32(1e-6)
    assert (np.delete(first, 7) > 1e-6).all()
    assert (second == 1).all()  # a layer that is silent as a whole: all alike


def test_the_factor_is_made_once(tiny_dir: Path) -> None:
    moments = collect_moments(load(tiny_dir), WINDOWS, full=True)
    moment = moments["model.layers.0.mlp.gate_proj"]
    assert moment.factor(0.01, 0.0, 1) is moments["model.layers.0.mlp.up_proj"].factor(0.01, 0.0, 1)


def test_progress_grows_to_its_total(tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEMORY", 1)
    calls: list[tuple[str, int, int]] = []
    collect_moments(load(tiny_dir), WINDOWS, full=True, progress=lambda *call: calls.append(call))
    assert {label for label, _, _ in calls} == {"calibrate"}
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)
    assert calls[-1][1:] == (9, 9)


# --- what can go wrong


@pytest.mark.parametrize(
    ("windows", "words"),
    [
        ([], "no calibration tokens"),
        ([[]], "no calibration tokens"),
        ([[1, 2], [3, 288]], "token id 288 is outside the vocabulary of 288"),
        ([[-1]], "token id -1 is outside"),
    ],
)
def test_windows_that_cannot_be_used_are_refused(
    tiny_dir: Path, windows: list[list[int]], words: str
) -> None:
    with pytest.raises(PomonaError, match=words):
        collect_moments(load(tiny_dir), windows, full=True)


def test_an_unknown_module_is_refused(tiny_dir: Path) -> None:
    with pytest.raises(PomonaError, match=r"model\.layers\.9\.mlp\.up_proj: is no linear layer"):
        collect_moments(load(tiny_dir), WINDOWS, full=True, modules=["model.layers.9.mlp.up_proj"])


@pytest.mark.parametrize("full", [True, False])
def test_activations_that_are_not_finite_are_refused(
    tiny_dir: Path, tmp_path: Path, changed: Callable[..., Path], full: bool
) -> None:
    damaged = {"model.layers.0.input_layernorm.weight": lambda array: np.full_like(array, 0x7FC0)}
    engine = load(changed(tiny_dir, tmp_path / "m", damaged))
    free = engine.native.free_tokens
    with pytest.raises(PomonaError, match="not finite; the checkpoint is damaged"):
        collect_moments(engine, WINDOWS, full=full)
    assert engine.native.free_tokens == free


def test_ctrl_c_leaves_the_engine_usable(tiny_dir: Path) -> None:
    def interrupt(label: str, done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    engine = load(tiny_dir)
    free = engine.native.free_tokens
    with pytest.raises(KeyboardInterrupt):
        collect_moments(engine, WINDOWS, full=True, progress=interrupt)
    assert engine.native.free_tokens == free
    assert engine.native.take_moments() == {}


@pytest.mark.parametrize(("first", "last"), [(-1, 1), (1, 1), (2, 1), (0, 4)])
def test_a_range_of_layers_that_is_not_there_is_refused(tiny_dir: Path, first: int, last: int) -> None:
    engine = load(tiny_dir)
    with pytest.raises(PomonaError, match="no such range of layers"):
        engine.run_layers([1, 2], first, last, np.zeros((2, 128), np.float32))
