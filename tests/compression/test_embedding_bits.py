"""Embedding and head as palettes: stored, run on every instruction set, and part of a budget."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pomona import _native
from pomona.compression.compress import compress
from pomona.compression.options import CompressOptions
from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.export import export_hf
from pomona.models.model_directory import read_json_object
from pomona.models.palettized import dequantize_tensor, describe, read_quantization_config
from pomona.models.safetensors_file import Checkpoint, bf16_from_float32, float32_from_bf16
from pomona.runtime.engine import Engine

EMBEDDING = "model.embed_tokens"
IDS = list(range(3, 60))


def heads(directory: Path) -> list[str]:
    tied = ModelConfig.from_directory(directory).tie_word_embeddings
    return [EMBEDDING] if tied else [EMBEDDING, "lm_head"]


def unpacked(value: NDArray[np.float32], _: NDArray[np.uint16]) -> NDArray[np.uint16]:
    return bf16_from_float32(value)


def stored_bits(directory: Path) -> dict[str, int]:
    quantization = read_quantization_config(read_json_object(directory / "config.json"))
    assert quantization is not None
    return {name: bits for name, bits in quantization.bits.items() if name in (EMBEDDING, "lm_head")}


# --- stored and run


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_embedding_and_head_are_stored_as_asked(small_dir: Path, tmp_path: Path, bits: int) -> None:
    report = compress(small_dir, tmp_path / "out", embedding_bits=bits, calibration="none", threads=1)
    assert stored_bits(tmp_path / "out") == dict.fromkeys(heads(small_dir), bits)
    formats = {t.name: t.format for t in describe(tmp_path / "out").tensors}
    kind = "int8" if bits == 8 else f"palette{bits}"
    assert all(formats[f"{module}.weight"] == kind for module in heads(small_dir))
    modules = {m.name: m for m in report.modules}
    assert set(heads(small_dir)) <= set(modules)
    assert all((modules[m].bits, modules[m].kind) == (bits, m.split(".")[-1]) for m in heads(small_dir))
    # The projections have 4 bits all the same.
    assert 4.1 < report.projection_bits_per_weight < 4.3


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_every_instruction_set_reads_rows_and_head_alike(small_dir: Path, tmp_path: Path, bits: int) -> None:
    pins = tmp_path / "pins.json"
    pins.write_text(f'{{"version": 1, "pins": {{"{EMBEDDING}": {bits}}}}}')
    compress(small_dir, tmp_path / "out", constraints=pins, calibration="none", threads=1)
    assert stored_bits(tmp_path / "out")[EMBEDDING] == bits
    found = {
        isa: Engine.load(tmp_path / "out", threads=2, isa=isa).logits(IDS)
        for isa in _native.available_isas().split()
    }
    for isa, logits in found.items():
        # Products are equal; norms and softmax differ in the last bit, and an activation may round otherwise.
        np.testing.assert_allclose(logits, found["scalar"], rtol=0, atol=0.02, err_msg=isa)


def test_the_engine_computes_with_the_weights_that_the_palettes_stand_for(
    small_dir: Path, tmp_path: Path, changed: Callable[..., Path]
) -> None:
    """Only the embedding is packed; an engine that has its unpacked weights, in bf16, agrees."""
    compress(small_dir, tmp_path / "out", embedding_bits=3, calibration="none", threads=1)
    parts, changes = {}, {}
    with Checkpoint(tmp_path / "out") as packed, Checkpoint(small_dir) as plain:
        for module in heads(small_dir):
            names = [name for name in packed.tensors if name.startswith(f"{module}.")]
            parts[module] = {name: packed.array(name).copy() for name in names}
            value = dequantize_tensor(packed, module)
            changes[f"{module}.weight"] = partial(unpacked, value)
            weight = float32_from_bf16(plain.array(f"{module}.weight"))
            relative = np.linalg.norm(value - weight) / np.linalg.norm(weight)
            assert 0.05 < relative < 0.25, module  # 8 colours of normal values: 0.186
    reference = Engine.load(changed(small_dir, tmp_path / "plain", changes), threads=1).logits(IDS)
    mixed = Engine.load(small_dir, threads=1, replaced=parts).logits(IDS)
    assert np.abs(mixed - reference).max() < 0.05 * np.abs(reference).max()
    assert np.corrcoef(mixed.reshape(-1), reference.reshape(-1))[0, 1] > 0.999


def test_an_export_holds_what_the_palettes_stand_for(small_dir: Path, tmp_path: Path) -> None:
    compress(small_dir, tmp_path / "out", embedding_bits=4, calibration="none", threads=1)
    export_hf(tmp_path / "out", tmp_path / "plain")
    with Checkpoint(tmp_path / "out") as packed, Checkpoint(tmp_path / "plain") as plain:
        for module in heads(small_dir):
            exact = dequantize_tensor(packed, module)
            np.testing.assert_allclose(
                float32_from_bf16(plain.array(f"{module}.weight")), exact, rtol=2**-8, atol=0
            )


# --- budgets


def test_a_size_is_met_by_the_whole_file(tiny_dir: Path, tmp_path: Path) -> None:
    whole = compress(tiny_dir, tmp_path / "whole", calibration="none", threads=1).file_bytes
    embedding = []
    for number, part in enumerate((1.6, 1.0, 0.85, 0.75)):
        size = int(whole * part)
        report = compress(tiny_dir, tmp_path / str(number), size=size, calibration="none", threads=1)
        assert report.file_bytes <= size
        if part <= 1:
            assert report.file_bytes >= 0.93 * size
        embedding.append(stored_bits(tmp_path / str(number))[EMBEDDING])
        module = next(m for m in report.modules if m.name == EMBEDDING)
        assert [choice.bits for choice in module.choices] == [8, 4, 3]
        for choice in module.choices:
            if choice.bits == module.bits:
                tensor = next(t for t in report.tensors if t.name == f"{EMBEDDING}.weight")
                assert choice.bytes == tensor.bytes
    assert embedding[0] == 8
    assert embedding == sorted(embedding, reverse=True)
    assert embedding[-1] < 8


def test_a_size_out_of_reach_is_refused_with_one_that_is_in_reach(tiny_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(
        PomonaError, match=r"--size 1,000: the model takes [\d,]+ bytes at the least"
    ) as caught:
        compress(tiny_dir, tmp_path / "out", size=1000, calibration="none", threads=1)
    found = re.search(r"takes ([\d,]+) bytes", str(caught.value))
    assert found is not None
    least = int(found[1].replace(",", ""))
    report = compress(tiny_dir, tmp_path / "out", size=least, calibration="none", threads=1)
    assert 0.9 * least < report.file_bytes <= least
    assert stored_bits(tmp_path / "out") == {EMBEDDING: 3}
    with pytest.raises(PomonaError, match="at the least"):
        compress(tiny_dir, tmp_path / "more", size=least - 1, calibration="none", threads=1)


def test_a_loss_counts_the_embedding_too(tiny_dir: Path, text_file: Path, tmp_path: Path) -> None:
    report = compress(
        tiny_dir, tmp_path / "out", max_kl=0.05, method="weighted", calibration=text_file, threads=1
    )
    taken = [next(c for c in m.choices if c.bits == m.bits) for m in report.modules]
    assert report.predicted_kl == pytest.approx(math.fsum(c.kl or 0.0 for c in taken))
    assert report.predicted_kl <= 0.05
    assert report.measured_kl is not None
    assert 0.2 < report.measured_kl / report.predicted_kl < 5
    assert EMBEDDING in {m.name for m in report.modules}


def test_with_a_budget_of_bits_it_stays_at_8_and_the_report_says_what_it_could_be(
    tiny_dir: Path, text_file: Path, tmp_path: Path
) -> None:
    report = compress(
        tiny_dir, tmp_path / "out", bits=3.5, method="weighted", calibration=text_file, threads=1
    )
    module = next(m for m in report.modules if m.name == EMBEDDING)
    assert module.bits == 8
    assert [choice.bits for choice in module.choices] == [8, 4, 3]
    losses = [choice.kl for choice in module.choices]
    assert losses == sorted(losses, key=lambda kl: kl or 0.0)
    assert report.projection_bits_per_weight <= 3.5


def test_other_widths_are_refused() -> None:
    for bits in (2, 5, 16):
        with pytest.raises(PomonaError, match=f"--embedding-bits {bits}: must be 8, 4 or 3"):
            CompressOptions(embedding_bits=bits)
