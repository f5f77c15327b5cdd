"""Sensitivity: the KL is that of the definition, of one module at a time, and resumed where it stopped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pomona.compression.compress import compress
from pomona.compression.packing import pack, plan_matrix
from pomona.compression.sensitivity import Reference, measure, predict
from pomona.compression.work import WorkFolder
from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.safetensors_file import Checkpoint
from pomona.runtime.engine import Engine

WINDOWS = [list(range(3, 120)), list(range(40, 90))]


def packed_module(directory: Path, module: str, bits: int) -> Mapping[str, NDArray[Any]]:
    config = ModelConfig.from_directory(directory)
    rows, columns = config.tensor_shapes()[f"{module}.weight"]
    with Checkpoint(directory) as checkpoint:
        found = pack(checkpoint, plan_matrix(module, (rows, columns), 64, bits), None, "kmeans", 1)
        return {name: array.copy() for name, array in found.arrays.items()}


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


def test_the_kl_is_that_of_the_definition(tiny_dir: Path, tmp_path: Path) -> None:
    compress(tiny_dir, tmp_path / "packed", bits=2, calibration="none", threads=1)
    plain, packed = Engine.load(tiny_dir, threads=1), Engine.load(tmp_path / "packed", threads=1)
    expected = []
    for window in WINDOWS:
        log_p, log_q = log_softmax(plain.logits(window)), log_softmax(packed.logits(window))
        expected.extend((np.exp(log_p) * (log_p - log_q)).sum(axis=1))
    assert Reference.of(plain, WINDOWS).kl(packed) == pytest.approx(np.mean(expected), rel=1e-4)
    assert abs(Reference.of(plain, WINDOWS).kl(plain)) < 1e-6


def test_stored_distributions_are_those_of_the_logits(tiny_dir: Path) -> None:
    engine = Engine.load(tiny_dir, threads=2)
    stored = engine.distributions(WINDOWS[0])
    exact = log_softmax(engine.logits(WINDOWS[0]))
    assert (stored.dtype, stored.shape) == (np.dtype(np.uint16), exact.shape)
    np.testing.assert_allclose(stored / -2048.0, np.maximum(exact, -32), atol=0.6 / 2048)


@pytest.mark.parametrize("threads", [1, 3])
def test_from_what_enters_a_layer_the_answers_are_those_of_the_whole(tiny_dir: Path, threads: int) -> None:
    """Bit for bit, in several native steps, from every layer and from the head alone."""
    engine = Engine.load(tiny_dir, threads=threads)
    ids = [number * 7 % 250 for number in range(700)]
    whole = engine.distributions(ids)
    residual = np.zeros((len(ids), engine.config.hidden_size), np.float32)
    for layer in range(engine.config.num_hidden_layers):
        engine.run_layers(ids, layer, layer + 1, residual)
        before = residual.copy()
        np.testing.assert_array_equal(engine.distributions(ids, layer + 1, residual), whole)
        assert engine.divergences(ids, whole, layer + 1, residual).max() < 1e-5
        np.testing.assert_array_equal(residual, before)


def test_what_does_not_fit_is_refused_and_the_engine_goes_on(tiny_dir: Path) -> None:
    engine = Engine.load(tiny_dir, threads=1)
    ids = WINDOWS[0]
    reference = engine.distributions(ids)
    residual = np.zeros((len(ids), engine.config.hidden_size), np.float32)
    for call in (
        lambda: engine.divergences(ids, reference[:-1]),
        lambda: engine.divergences(ids, np.ascontiguousarray(reference[:, :-1])),
        lambda: engine.divergences(ids, reference, 1),
        lambda: engine.divergences(ids, reference, 1, residual[:-1]),
        lambda: engine.divergences(ids, reference, engine.config.num_hidden_layers + 1, residual),
        lambda: engine.distributions(ids, -1, residual),
        lambda: engine.distributions([engine.config.vocab_size]),
        lambda: engine.distributions(range(engine.config.max_position_embeddings + 1)),
    ):
        with pytest.raises(PomonaError):
            call()
    np.testing.assert_array_equal(engine.distributions(ids), reference)


def test_a_replaced_module_is_the_only_one_that_changes(tiny_dir: Path, tmp_path: Path) -> None:
    compress(tiny_dir, tmp_path / "packed", bits=3, calibration="none", table_columns=64, threads=1)
    modules = ModelConfig.from_directory(tiny_dir).linear_shapes()
    embedding = {}
    with Checkpoint(tmp_path / "packed") as checkpoint:
        for part in ("weight_int8", "weight_row_scales"):
            name = f"model.embed_tokens.{part}"
            embedding[name] = checkpoint.array(name).copy()
    replaced = {module: packed_module(tiny_dir, module, 3) for module in modules}
    replaced["model.embed_tokens"] = embedding
    assembled = Engine.load(tiny_dir, threads=1, replaced=replaced).logits(WINDOWS[0])
    np.testing.assert_array_equal(assembled, Engine.load(tmp_path / "packed", threads=1).logits(WINDOWS[0]))


def test_every_module_is_measured_alone_and_only_once(tiny_dir: Path, tmp_path: Path) -> None:
    modules = dict.fromkeys(list(ModelConfig.from_directory(tiny_dir).linear_shapes())[:3], 2)
    plain = Engine.load(tiny_dir, threads=1)
    asked: list[str] = []

    def packed(module: str, bits: int) -> Mapping[str, NDArray[Any]]:
        asked.append(module)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return packed_module(tiny_dir, module, bits)

    work = WorkFolder(tmp_path / "work", {"n": 1})
    with pytest.raises(KeyboardInterrupt):
        measure(plain, packed, modules, WINDOWS, work)
    found = measure(plain, packed, modules, WINDOWS, WorkFolder(tmp_path / "work", {"n": 1}))
    assert asked == [*modules, [*modules][2]]
    fresh = measure(
        plain,
        lambda module, bits: packed_module(tiny_dir, module, bits),
        modules,
        WINDOWS,
        WorkFolder(tmp_path / "other", {"n": 1}),
    )
    assert found == fresh
    assert all(kl > 0 for kl in found.values())
    again = measure(plain, packed, dict.fromkeys(modules, 3), WINDOWS, work)
    assert len(asked) == 7  # another width is another measurement
    assert all(again[module] < found[module] for module in modules)


def test_layers_head_and_embedding_are_measured_as_in_a_whole_run(tiny_dir: Path, tmp_path: Path) -> None:
    """What is kept between the layers changes nothing: each KL is that of the changed model run alone."""
    modules = dict.fromkeys(["model.embed_tokens", *ModelConfig.from_directory(tiny_dir).linear_shapes()], 3)
    found = measure(
        Engine.load(tiny_dir, threads=2),
        lambda module, bits: packed_module(tiny_dir, module, bits),
        modules,
        WINDOWS,
        WorkFolder(tmp_path / "work", {}),
    )
    reference = Reference.of(Engine.load(tiny_dir, threads=1), WINDOWS)
    for module in modules:
        replaced = {module: packed_module(tiny_dir, module, 3)}
        assert found[module] == reference.kl(Engine.load(tiny_dir, threads=1, replaced=replaced))


def test_modules_of_one_kind_in_neighbouring_layers_share_a_measurement(
    tiny_dir: Path, tmp_path: Path
) -> None:
    """Each has an equal part of the loss of all; other widths, other kinds and the embedding stay apart."""
    names = ["model.embed_tokens", *ModelConfig.from_directory(tiny_dir).linear_shapes()]
    modules = {name: 4 if name.endswith("up_proj") and ".0." in name else 3 for name in names}
    forms = {name: packed_module(tiny_dir, name, bits) for name, bits in modules.items()}
    plain, labels = Engine.load(tiny_dir, threads=1), []
    found = measure(
        plain,
        lambda module, bits: forms[module],
        modules,
        WINDOWS,
        WorkFolder(tmp_path / "work", {}),
        layers_together=2,
        progress=lambda label, done, total: labels.append((done, total)),
    )
    reference = Reference.of(plain, WINDOWS)

    def alone(*group: str) -> float:
        changed = plain.changed({name: forms[name] for name in group}, 256)
        return reference.kl(changed)

    assert labels[-1] == (15, 15) and len(labels) == 6 + 2 + 1 + 1  # a call more when all is done
    for name in names:
        pair = [name.replace(".0.", ".1."), name.replace(".1.", ".0.")]
        if "up_proj" in name or name == "model.embed_tokens":
            assert found[name] == alone(name)
        else:
            assert found[name] == alone(*sorted(pair)) / 2


def test_a_changed_engine_reads_the_weights_where_they_are_mapped(tiny_dir: Path) -> None:
    """Nothing else changes, and its memory is only what was replaced."""
    plain = Engine.load(tiny_dir, threads=1)
    before = plain.logits(WINDOWS[0])
    module = "model.layers.1.mlp.down_proj"
    form = packed_module(tiny_dir, module, 2)
    changed = plain.changed({module: form}, 256)
    assert changed._checkpoint is plain._checkpoint
    loaded = Engine.load(tiny_dir, threads=1, replaced={module: form})
    np.testing.assert_array_equal(changed.logits(WINDOWS[0]), loaded.logits(WINDOWS[0]))
    np.testing.assert_array_equal(plain.logits(WINDOWS[0]), before)


def test_at_other_widths_the_loss_goes_with_the_square_of_the_error(tiny_dir: Path, tmp_path: Path) -> None:
    assert predict(0.03, 0.1, 0.05) == pytest.approx(0.0075)
    assert predict(0.03, 0.0, 0.05) == 0.0
