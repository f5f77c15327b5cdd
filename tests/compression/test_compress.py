"""Compression of a model directory: complete, true to its report, repeatable, and whole or absent."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pomona import _native
from pomona.compression import effort
from pomona.compression.calibrate import calibration_text
from pomona.compression.compress import compress
from pomona.compression.moments import InputMoments, collect_moments
from pomona.data.builtin_text import evaluation_text
from pomona.models.config import ModelConfig
from pomona.models.model_directory import read_json_object
from pomona.models.palettized import (
    dequantize_tensor,
    describe,
    fingerprint,
    read_quantization_config,
)
from pomona.models.presets import preset
from pomona.models.random_init import random_model
from pomona.models.safetensors_file import (
    Checkpoint,
    bf16_from_float32,
    float32_from_bf16,
)
from pomona.models.tokenizer import Tokenizer
from pomona.runtime.engine import Engine

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def weights(directory: Path) -> dict[str, NDArray[np.float64]]:
    """Every weight of a plain or compressed model, by the names of the plain one."""
    config = ModelConfig.from_directory(directory)
    with Checkpoint(directory) as checkpoint:
        return {
            name: dequantize_tensor(checkpoint, name.removesuffix(".weight")).astype(np.float64)
            if name.endswith(".weight")
            else float32_from_bf16(checkpoint.array(name)).astype(np.float64)
            for name in config.tensor_shapes()
        }


def calibrated(directory: Path, path: Path) -> tuple[dict[str, NDArray[np.float64]], dict[str, InputMoments]]:
    """The weights of a plain model and the moments of what they read."""
    engine = Engine.load(directory, threads=1)
    text = calibration_text(engine, Tokenizer.from_directory(directory), path)
    return weights(directory), collect_moments(engine, text.windows, full=True)


def energy(matrix: NDArray[np.float64], moments: InputMoments) -> float:
    """tr(M H M^T)"""
    assert moments.full is not None
    return float(((matrix @ moments.full.astype(np.float64)) * matrix).sum())


def files(directory: Path) -> dict[str, bytes]:
    """Name -> content; the report without its time."""
    content = {path.name: path.read_bytes() for path in directory.iterdir()}
    report = json.loads(content["compression_report.json"])
    assert report.pop("seconds") > 0
    return {**content, "compression_report.json": json.dumps(report).encode()}


# --- what is written


def test_the_directory_is_complete(tiny_dir: Path, text_file: Path, tmp_path: Path) -> None:
    compress(tiny_dir, tmp_path / "out", calibration=text_file, threads=1)
    assert sorted(os.listdir(tmp_path / "out")) == [
        "LICENSE",
        "chat_template.jinja",
        "compression_report.json",
        "config.json",
        "model.safetensors",
        "pomona.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name in ("LICENSE", "chat_template.jinja", "pomona.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tiny_dir / name).read_bytes()
    assert os.listdir(tmp_path) == ["out"]


def test_the_config_is_that_of_the_source_and_says_how_each_module_is_packed(
    small_dir: Path, small_4bit_dir: Path
) -> None:
    raw = read_json_object(small_4bit_dir / "config.json")
    quantization = read_quantization_config(raw)
    assert quantization is not None
    del raw["quantization_config"]
    assert raw == read_json_object(small_dir / "config.json")
    config = ModelConfig.from_hf(raw, "config.json")
    heads = ["model.embed_tokens"] if config.tie_word_embeddings else ["model.embed_tokens", "lm_head"]
    assert quantization.bits == {**dict.fromkeys(config.linear_shapes(), 4), **dict.fromkeys(heads, 8)}
    with Checkpoint(small_4bit_dir) as checkpoint:
        assert quantization.base_fingerprint == fingerprint(checkpoint)
    assert describe(small_4bit_dir).fingerprint == quantization.base_fingerprint


def test_weights_come_back_as_they_should(small_dir: Path, small_4bit_dir: Path) -> None:
    plain, packed = weights(small_dir), weights(small_4bit_dir)
    config = ModelConfig.from_directory(small_dir)
    linear = {f"{name}.weight" for name in config.linear_shapes()}
    assert list(plain) == list(packed)
    for name, weight in plain.items():
        if name in linear:
            relative = np.sqrt(((packed[name] - weight) ** 2).sum() / (weight**2).sum())
            assert 0.01 < relative < 0.11, name  # 16 colours of normal values: 0.0975
        elif weight.ndim == 2:
            steps = np.abs(weight).max(axis=1, keepdims=True) / 127
            assert (np.abs(packed[name] - weight) <= 0.6 * steps).all(), name
        else:
            np.testing.assert_array_equal(packed[name], weight)


def test_it_runs_and_computes_nearly_what_the_source_computes(small_dir: Path, small_4bit_dir: Path) -> None:
    ids = list(range(3, 60))
    plain, packed = (Engine.load(path, threads=1).logits(ids) for path in (small_dir, small_4bit_dir))
    assert np.isfinite(packed).all()
    correlation = np.corrcoef(plain.reshape(-1), packed.reshape(-1))[0, 1]
    assert 0.9 < correlation < 0.99999


def test_tensors_start_at_multiples_of_64_bytes(small_4bit_dir: Path) -> None:
    """All that a kernel streams; the last few vectors of odd length may not."""
    with Checkpoint(small_4bit_dir) as checkpoint:
        for name, info in checkpoint.tensors.items():
            if name.endswith(("_indices", "_int8")):
                assert checkpoint.array(name).ctypes.data % 64 == 0, (name, info)


def test_what_cannot_be_packed_stays_in_bf16(tmp_path: Path) -> None:
    odd = replace(
        preset("afm-nano"),
        vocab_size=200,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
    )
    source = random_model(odd, tmp_path / "odd")
    report = compress(source, tmp_path / "out", calibration="none", threads=1)
    formats = {t.name.removeprefix("model.layers.0."): t.format for t in report.tensors}
    # Only down_proj and o_proj read a multiple of 64 columns.
    assert {name for name, format in formats.items() if format == "palette4"} == {
        "self_attn.o_proj.weight",
        "mlp.down_proj.weight",
    }
    assert {
        format
        for name, format in formats.items()
        if name not in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
    } == {"bf16"}
    before, after = weights(source), weights(tmp_path / "out")
    np.testing.assert_array_equal(before[Q_PROJ], after[Q_PROJ])
    assert np.isfinite(Engine.load(tmp_path / "out", threads=1).logits([1, 2, 3])).all()


# --- the report


def test_the_report_adds_up_to_the_file(small_dir: Path, tmp_path: Path) -> None:
    report = compress(small_dir, tmp_path / "out", calibration="none", table_columns=64, threads=1)
    path = tmp_path / "out" / "model.safetensors"
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert header + sum(t.bytes for t in report.tensors) == report.file_bytes == path.stat().st_size
    config = ModelConfig.from_directory(small_dir)
    assert {t.name: tuple(t.shape) for t in report.tensors} == config.tensor_shapes()
    assert all(t.bits == 8 * t.bytes / math.prod(t.shape) for t in report.tensors)
    linear = [t for t in report.tensors if t.name.removesuffix(".weight") in config.linear_shapes()]
    count = sum(math.prod(t.shape) for t in linear)
    assert report.projection_bits_per_weight == pytest.approx(8 * sum(t.bytes for t in linear) / count)
    assert 4.1 < report.projection_bits_per_weight < 4.3
    assert report.file_bits_per_weight == pytest.approx(
        8 * report.file_bytes / sum(math.prod(t.shape) for t in report.tensors)
    )
    assert report.source_bytes == 2 * sum(math.prod(t.shape) for t in report.tensors)
    stored = read_json_object(tmp_path / "out" / "compression_report.json")
    assert stored["version"] == 2
    assert stored == json.loads(json.dumps(report.to_json()))


def test_the_reported_errors_are_the_errors(tiny_dir: Path, text_file: Path, tmp_path: Path) -> None:
    """sqrt(tr((W - Q) H (W - Q)^T) / tr(W H W^T)), for int8 with H's diagonal."""
    report = compress(tiny_dir, tmp_path / "out", calibration=text_file, threads=1)
    plain, moments = calibrated(tiny_dir, text_file)
    packed = weights(tmp_path / "out")
    for tensor in report.tensors:
        if tensor.format == "bf16":
            assert tensor.relative_error == 0.0
            continue
        w, q = plain[tensor.name], packed[tensor.name]
        if tensor.format == "int8":  # the rows of the head, which is tied
            h = moments["lm_head"].importance().astype(np.float64)
            expected = math.sqrt(((w - q) ** 2 @ h).sum() / (w**2 @ h).sum())
        else:
            h_KK = moments[tensor.name.removesuffix(".weight")]
            expected = math.sqrt(energy(w - q, h_KK) / energy(w, h_KK))
        assert tensor.relative_error == pytest.approx(expected, rel=1e-3)


# --- repeatable


@pytest.mark.parametrize("calibration", ["none", "file", "self"])
def test_the_same_bytes_for_any_number_of_threads(
    tiny_dir: Path, text_file: Path, tmp_path: Path, calibration: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pomona.compression.calibrate.ANSWER_TOKENS", 6)
    text: str | Path = text_file if calibration == "file" else calibration
    results = []
    for number, threads in enumerate((1, 2, 3, 2)):
        compress(tiny_dir, tmp_path / str(number), calibration=text, threads=threads)
        results.append(files(tmp_path / str(number)))
    assert results[1] == results[0]
    assert results[2] == results[0]
    assert results[3] == results[0]


# --- calibration and tables


def test_calibration_changes_the_weights_and_lowers_the_error_that_counts(
    tiny_dir: Path, text_file: Path, tmp_path: Path, changed: Callable[..., Path]
) -> None:
    def uneven(array: NDArray[np.uint16]) -> NDArray[np.uint16]:
        """Inputs of very different size, as in trained models."""
        scale = np.exp(1.5 * np.random.default_rng(0).standard_normal(len(array)))
        return bf16_from_float32((float32_from_bf16(array) * scale).astype(np.float32))

    layers = {
        f"model.layers.{layer}.{norm}.weight": uneven
        for layer in (0, 1)
        for norm in ("input_layernorm", "post_attention_layernorm")
    }
    source = changed(tiny_dir, tmp_path / "source", layers)
    other = tmp_path / "other.txt"
    other.write_text("0123456789" * 30)
    texts: dict[str, str | Path] = {"none": "none", "text": text_file, "other": other}
    for name, text in texts.items():
        compress(source, tmp_path / name, calibration=text, threads=1)
    contents = {(tmp_path / name / "model.safetensors").read_bytes() for name in texts}
    assert len(contents) == len(texts)

    config = ModelConfig.from_directory(source)
    plain, moments = calibrated(source, text_file)
    loose, tuned = weights(tmp_path / "none"), weights(tmp_path / "text")
    gains = []
    for name in config.linear_shapes():
        weight = f"{name}.weight"
        before = energy(loose[weight] - plain[weight], moments[name])
        gains.append(energy(tuned[weight] - plain[weight], moments[name]) / before)
    assert max(gains) < 1.0
    assert np.mean(gains) < 0.5


def test_without_calibration_no_tokenizer_is_needed_and_all_columns_count_alike(
    tiny_dir: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_dir, source, ignore=shutil.ignore_patterns("tokenizer*", "chat_template*"))
    compress(source, tmp_path / "out", calibration="none", table_columns=64, threads=1)
    plain = weights(source)[Q_PROJ].astype(np.float32)
    expected = _native.palettize(plain, np.ones(plain.shape[1], np.float32), 4, 64, 1)
    with Checkpoint(tmp_path / "out") as checkpoint:
        for part in ("indices", "tables", "table_scales", "row_scales"):
            assert checkpoint.array(f"{Q_PROJ}_{part}").tobytes() == expected[part].tobytes()


@pytest.mark.parametrize(
    ("table_columns", "expected"),
    [
        # widths in the tiny model: 128 (q, k, v, o, gate, up) and 320 (down), whose divisors are 64 and 320
        (64, {128: 64, 320: 64}),
        (128, {128: 128, 320: 64}),
        (192, {128: 128, 320: 64}),
        (None, {128: 64, 320: 64}),  # the finest, as in every small model
        (320, {128: 128, 320: 320}),
        (64_000, {128: 128, 320: 320}),
    ],
)
def test_a_width_that_the_tables_do_not_divide_takes_the_next_divisor(
    tiny_dir: Path, tmp_path: Path, table_columns: int | None, expected: dict[int, int]
) -> None:
    compress(tiny_dir, tmp_path / "out", calibration="none", table_columns=table_columns, threads=1)
    config = ModelConfig.from_directory(tiny_dir)
    with Checkpoint(tmp_path / "out") as checkpoint:
        for name, (rows, columns) in config.linear_shapes().items():
            shape = checkpoint.tensors[f"{name}.weight_tables"].shape
            assert shape == (rows // 16, columns // expected[columns], 16)
    assert np.isfinite(Engine.load(tmp_path / "out", threads=1).logits([1, 2, 3])).all()


def test_a_large_model_gets_coarser_tables_by_default(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effort, "LARGE", 1)
    compress(tiny_dir, tmp_path / "out", calibration="none", threads=1)
    with Checkpoint(tmp_path / "out") as checkpoint:
        assert checkpoint.tensors["model.layers.0.self_attn.q_proj.weight_tables"].shape == (8, 1, 16)


def test_a_large_model_chooses_by_drafts_and_packs_in_earnest_only_what_it_chose(
    tiny_dir: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effort, "LARGE", 1)
    work: dict[str, int] = {}

    def progress(label: str, done: int, total: int) -> None:
        work[label] = total

    drafted = compress(
        tiny_dir, tmp_path / "drafted", bits=3.5, calibration=text_file, threads=1, progress=progress
    )
    chosen = {m.name: m.bits for m in drafted.modules}
    assert work["palettise"] == len(chosen) < work["draft"]
    assert len(set(chosen.values())) > 1  # a mix, else nothing was chosen
    pins = tmp_path / "pins.json"
    pins.write_text(json.dumps({"version": 1, "pins": chosen}))
    pinned = compress(tiny_dir, tmp_path / "pinned", calibration=text_file, constraints=pins, threads=1)
    with Checkpoint(tmp_path / "drafted") as one, Checkpoint(tmp_path / "pinned") as other:
        assert fingerprint(one) == fingerprint(other)
    errors = {tensor.name: tensor.relative_error for tensor in pinned.tensors}
    for found in drafted.modules:
        taken = next(choice for choice in found.choices if choice.bits == found.bits)
        assert taken.relative_error == pytest.approx(errors[f"{found.name}.weight"], rel=1e-6)


# --- fewer bits


def bits_of(directory: Path) -> dict[str, int]:
    """Bits of every projection, from the tables in the file."""
    config = ModelConfig.from_directory(directory)
    with Checkpoint(directory) as checkpoint:
        return {
            name: checkpoint.tensors[f"{name}.weight_tables"].shape[2].bit_length() - 1
            if f"{name}.weight_tables" in checkpoint.tensors
            else 8
            for name in config.linear_shapes()
        }


@pytest.mark.parametrize("bits", [2.3, 3.5])
def test_a_fraction_is_a_budget_with_tables_and_scales_counted(
    small_dir: Path, tmp_path: Path, bits: float
) -> None:
    report = compress(small_dir, tmp_path / "out", bits=bits, calibration="none", table_columns=64, threads=1)
    shapes = ModelConfig.from_directory(small_dir).linear_shapes()
    weights = sum(map(math.prod, shapes.values()))
    step = max(map(math.prod, shapes.values())) * (1 + 8 * 8 / 1024)  # one bit less of the largest matrix
    assert bits - step / weights < report.projection_bits_per_weight <= bits
    found = bits_of(tmp_path / "out")
    assert set(found.values()) <= {2, 3, 4, 8}
    assert len(set(found.values())) > 1
    assert np.isfinite(Engine.load(tmp_path / "out", threads=1).logits([1, 2, 3])).all()


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_a_whole_number_is_for_all_projections(small_dir: Path, tmp_path: Path, bits: int) -> None:
    report = compress(small_dir, tmp_path / "out", bits=bits, calibration="none", table_columns=64, threads=1)
    assert set(bits_of(tmp_path / "out").values()) == {bits}
    tables = ((1 << bits) + 2) * 8 / 1024
    assert bits + tables < report.projection_bits_per_weight < bits + tables + 16 / 128
    assert {t.format for t in report.tensors} == {f"palette{bits}", "int8", "bf16"}


def test_the_config_says_the_bits_of_every_module(small_dir: Path, tmp_path: Path) -> None:
    compress(small_dir, tmp_path / "out", bits=3.5, calibration="none", threads=1)
    quantization = read_quantization_config(read_json_object(tmp_path / "out" / "config.json"))
    assert quantization is not None
    linear = ModelConfig.from_directory(small_dir).linear_shapes()
    heads = {name: bits for name, bits in quantization.bits.items() if name not in linear}
    tied = ModelConfig.from_directory(small_dir).tie_word_embeddings
    assert set(heads) == {"model.embed_tokens"} | (set() if tied else {"lm_head"})
    assert quantization.bits == {**bits_of(tmp_path / "out"), **heads}


def test_fewer_bits_lose_more(tiny_dir: Path, text_file: Path, tmp_path: Path) -> None:
    losses = []
    for bits in (4, 3.6, 3.3, 3, 2.6, 2):
        report = compress(
            tiny_dir, tmp_path / str(bits), bits=bits, allocation="error", calibration=text_file, threads=1
        )
        losses.append(sum(t.relative_error**2 for t in report.tensors if "_proj" in t.name))
    assert losses == sorted(losses)
    assert losses[0] < losses[1] < losses[2]
    assert losses[-2] < losses[-1]


def test_bits_are_taken_where_they_are_not_missed(
    tiny_dir: Path, tmp_path: Path, changed: Callable[..., Path]
) -> None:
    """A matrix of four values needs no more than two bits."""
    gate, down = "model.layers.0.mlp.gate_proj", "model.layers.1.mlp.down_proj"

    def four_values(array: NDArray[np.uint16]) -> NDArray[np.uint16]:
        rng = np.random.default_rng(0)
        row = np.repeat([-1.5, -0.5, 0.25, 1.0], array.shape[1] // 4)
        return bf16_from_float32(np.stack([rng.permutation(row) for _ in array]).astype(np.float32))

    changes = {f"{gate}.weight": four_values, f"{down}.weight": four_values}
    source = changed(tiny_dir, tmp_path / "source", changes)
    report = compress(source, tmp_path / "out", bits=3.8, calibration="none", threads=1)
    found = bits_of(tmp_path / "out")
    assert found.pop(gate) == found.pop(down) == 2
    assert set(found.values()) == {4}
    errors = {t.name: t.relative_error for t in report.tensors}
    assert errors[f"{gate}.weight"] < 0.01


@pytest.mark.parametrize("calibration", ["none", "file"])
def test_a_budget_gives_the_same_bytes_for_any_number_of_threads(
    tiny_dir: Path, text_file: Path, tmp_path: Path, calibration: str
) -> None:
    text: str | Path = text_file if calibration == "file" else calibration
    results = []
    for number, threads in enumerate((1, 2, 3)):
        compress(tiny_dir, tmp_path / str(number), bits=3.5, calibration=text, threads=threads)
        results.append(files(tmp_path / str(number)))
    assert results[0] == results[1] == results[2]


def test_the_sorted_compressed_model_computes_nearly_what_the_source_computes(
    tiny_dir: Path, text_file: Path, tmp_path: Path
) -> None:
    ids = list(range(3, 60))
    plain = Engine.load(tiny_dir, threads=1).logits(ids).reshape(-1)
    likeness = []
    for bits in (4, 3, 2):
        compress(tiny_dir, tmp_path / str(bits), bits=bits, calibration=text_file, threads=1)
        packed = Engine.load(tmp_path / str(bits), threads=1).logits(ids).reshape(-1)
        likeness.append(float(np.corrcoef(plain, packed)[0, 1]))
    assert 0.85 < likeness[0] < 0.99999
    assert likeness == sorted(likeness, reverse=True)
    assert likeness[-1] > 0.3


def test_progress_names_the_attempts_for_a_budget(tiny_dir: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    compress(
        tiny_dir,
        tmp_path / "out",
        bits=3.5,
        calibration="none",
        threads=1,
        progress=lambda *call: calls.append(call),
    )
    labels = list(dict.fromkeys(label for label, _, _ in calls))
    assert labels == ["palettise", "write"]
    for label in labels:
        done, total = [(done, total) for name, done, total in calls if name == label][-1]
        assert done == total > 0


def test_progress_goes_through_both_steps_to_the_end(tiny_dir: Path, text_file: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    compress(
        tiny_dir,
        tmp_path / "out",
        calibration=text_file,
        threads=1,
        progress=lambda *call: calls.append(call),
    )
    assert list(dict.fromkeys(label for label, _, _ in calls)) == ["calibrate", "palettise", "write"]
    for label in ("calibrate", "palettise", "write"):
        done = [number for name, number, _ in calls if name == label]
        assert done == sorted(done)
        assert [total for name, _, total in calls if name == label][-1] == done[-1] > 0


# --- the real model


def test_the_real_model_at_four_bits(smollm2_dir: Path, smollm2_4bit_dir: Path) -> None:
    report = read_json_object(smollm2_4bit_dir / "compression_report.json")
    # 4 bits of index, 18 bytes of table per 16 x 64 weights, 2 bytes per row of 576 or 1536.
    assert report["projection_bits_per_weight"] == pytest.approx(4 + 18 * 8 / 1024 + 0.023, abs=0.003)
    assert report["file_bytes"] == (smollm2_4bit_dir / "model.safetensors").stat().st_size
    assert report["file_bits_per_weight"] < 5.2
    errors = [t["relative_error"] for t in report["tensors"] if t["format"] == "palette4"]
    assert len(errors) == 210
    assert min(errors) > 0
    assert max(errors) < 0.12
    ids = Tokenizer.from_directory(smollm2_dir).encode(evaluation_text())[:400]
    plain, packed = (
        float(-Engine.load(path, threads=2).score(ids).mean()) for path in (smollm2_dir, smollm2_4bit_dir)
    )
    assert plain < packed < plain + 0.4
