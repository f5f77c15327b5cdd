"""The packed format: layouts, bits, fingerprint, and the quantization_config that announces it.

Shape letters: N rows, K columns, C table columns, G = N / 16 groups, T = K / C tables of a group.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pomona.compression.compress import compress
from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.palettized import (
    PALETTE_BITS,
    QuantizationConfig,
    can_pack,
    dequantize_tensor,
    describe,
    fingerprint,
    indices_shape,
    int8_specs,
    is_packed,
    pack_int8,
    palette_specs,
    read_quantization_config,
    unpack_indices,
    unpack_int8,
    unpack_palette,
)
from pomona.models.safetensors_file import (
    Checkpoint,
    SafetensorsWriter,
    TensorSpec,
    bf16_from_float32,
    float32_from_bf16,
)

Arrays = dict[str, tuple[str, NDArray[Any]]]


# --- int8


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32 - 1), st.floats(-4, 4))
@settings(max_examples=60, deadline=None)
def test_int8_rounds_to_half_a_step_of_each_row(groups: int, blocks: int, seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((16 * groups, 64 * blocks)) * 10**size).astype(np.float32)
    weight[rng.integers(0, 16 * groups)] = 0.0
    packed = pack_int8(weight)
    assert packed["int8"].dtype == np.uint8
    assert packed["int8"].shape == (groups, 16 * blocks, 64)
    assert packed["row_scales"].dtype == np.float16
    scales = packed["row_scales"].astype(np.float64)[:, None]
    # The rounding of the scale to float16 may clip the largest value.
    clipped = np.abs(weight).max(axis=1, keepdims=True) - 127 * scales
    error = np.abs(unpack_int8(packed["int8"], packed["row_scales"]) - weight.astype(np.float64))
    assert (error <= np.maximum(0.5001 * scales, clipped * 1.0001) + 1e-30).all()


def test_int8_bytes_lie_as_the_kernels_read_them() -> None:
    """Byte 4 r + j of line k / 4 is weight[r][k + j] + 128."""
    values = np.random.default_rng(0).integers(-127, 128, (32, 64))
    values[:, 0] = 127  # so that the scale is 1
    packed = pack_int8(values.astype(np.float32))
    assert (packed["row_scales"] == 1).all()
    for row in range(32):
        for column in range(64):
            byte = packed["int8"][row // 16, column // 4, 4 * (row % 16) + column % 4]
            assert byte == values[row, column] + 128


def test_int8_of_zeros_and_of_the_smallest_rows_is_zero() -> None:
    weight = np.zeros((16, 64), np.float32)
    weight[1] = 1e-9
    packed = pack_int8(weight)
    assert (packed["row_scales"] == 0).all()
    assert (unpack_int8(packed["int8"], packed["row_scales"]) == 0).all()


# --- palettes


def place(bits: int, row: int, k: int) -> tuple[int, ...]:
    """Where the lowest bit of an index lies in its group: line, 32- or 64-bit word of the line, bit.

    4 and 2 bits: word r of a line is row r; its byte j holds columns j, j + 4, ... from the low bits up.
    3 bits: word p of three lines belongs to rows 2 p and 2 p + 1; a step of four columns takes 24 bits of it.
    """
    if bits != 3:
        width = 32 // bits  # columns of a line
        return k // width, row, 8 * (k % 4) + bits * (k % width // 4)
    at = 24 * (k % 32 // 4) + 12 * (row % 2) + 3 * (k % 4)
    return k // 32 * 3 + at // 64, row // 2, at % 64


def random_palette(
    rng: np.random.Generator, groups: int, columns: int, tables: int, bits: int = 4
) -> tuple[Arrays, NDArray[np.float64]]:
    """The parts of a palettised matrix `w`, and its weight, both written out element by element."""
    rows, width, colors = 16 * groups, columns // tables, 1 << bits
    entries = rng.integers(-127, 128, (groups, tables, colors)).astype(np.int8)
    table_scales = rng.uniform(0.001, 0.1, (groups, tables)).astype(np.float16)
    row_scales = rng.uniform(0.0, 2.0, rows).astype(np.float16)
    index = rng.integers(0, colors, (rows, columns)).astype(np.uint8)
    word = 64 if bits == 3 else 32
    stream = np.zeros((groups, columns * bits // 32, 512 // word, word), np.uint8)
    weight = np.zeros((rows, columns))
    for row in range(rows):
        for k in range(columns):
            for bit in range(bits):
                line, number, at = place(bits, row % 16, k)
                if bits == 3 and at + bit >= 64:  # goes on in the same word of the next line
                    line, at = line + 1, at - 64
                stream[row // 16, line, number, at + bit] = index[row, k] >> bit & 1
            entry = float(entries[row // 16, k // width, index[row, k]])
            weight[row, k] = entry * float(table_scales[row // 16, k // width]) * float(row_scales[row])
    packed = np.packbits(stream, axis=3, bitorder="little").reshape(indices_shape(rows, columns, bits))
    np.testing.assert_array_equal(unpack_indices(packed, bits), index)
    parts: Arrays = {
        "w.weight_indices": ("U8", packed),
        "w.weight_tables": ("I8", entries),
        "w.weight_table_scales": ("F16", table_scales),
        "w.weight_row_scales": ("F16", row_scales),
    }
    return parts, weight


@pytest.mark.parametrize("bits", PALETTE_BITS)
@pytest.mark.parametrize(("groups", "columns", "tables"), [(1, 64, 1), (2, 128, 2), (3, 192, 1), (2, 384, 3)])
def test_a_palette_unpacks_to_entry_times_table_scale_times_row_scale(
    groups: int, columns: int, tables: int, bits: int
) -> None:
    parts, weight = random_palette(np.random.default_rng(columns), groups, columns, tables, bits)
    unpacked = unpack_palette(*(array for _, array in parts.values()))
    assert unpacked.dtype == np.float32
    assert unpacked.flags.c_contiguous
    np.testing.assert_allclose(unpacked, weight, rtol=2e-7)
    specs = palette_specs("w", 16 * groups, columns, columns // tables, bits)
    assert [(s.name, s.dtype, s.shape) for s in specs] == [(n, d, a.shape) for n, (d, a) in parts.items()]


@pytest.mark.parametrize(
    ("bits", "shape"), [(4, (36, 192, 64)), (3, (36, 48, 3, 64)), (2, (36, 96, 64))], ids=["4", "3", "2"]
)
def test_indices_are_lines_of_64_bytes(bits: int, shape: tuple[int, ...]) -> None:
    assert indices_shape(576, 1536, bits) == shape
    assert 8 * math.prod(shape) == bits * 576 * 1536


@pytest.mark.parametrize("bits", PALETTE_BITS)
@pytest.mark.parametrize("table_columns", [64, 192, 576])
def test_the_price_of_tables_and_scales(table_columns: int, bits: int) -> None:
    """The bits of the index; per table 16, 8 or 4 entries and a scale, per row a scale."""
    specs = palette_specs("w", 1536, 576, table_columns, bits)
    tables = ((1 << bits) + 2) * 8 / (16 * table_columns)
    assert 8 * sum(s.nbytes for s in specs) / (1536 * 576) == pytest.approx(bits + tables + 16 / 576)


def test_the_price_of_int8_rows() -> None:
    assert 8 * sum(s.nbytes for s in int8_specs("w", 1536, 576)) / (1536 * 576) == pytest.approx(8 + 16 / 576)


@pytest.mark.parametrize(
    ("rows", "columns", "packs"),
    [(16, 64, True), (576, 1536, True), (8, 64, False), (24, 64, False), (16, 32, False), (16, 96, False)],
)
def test_what_can_be_packed(rows: int, columns: int, packs: bool) -> None:
    assert can_pack(rows, columns) is packs


# --- tensors in a file


def write(directory: Path, arrays: Arrays) -> Path:
    directory.mkdir()
    specs = [TensorSpec(name, dtype, array.shape) for name, (dtype, array) in arrays.items()]
    with SafetensorsWriter(directory / "model.safetensors", specs) as writer:
        for name, (_, array) in arrays.items():
            writer.write(name, array)
    return directory


def test_any_form_of_a_weight_comes_back_in_float32(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    palette, palette_weight = random_palette(rng, 2, 128, 2)
    plain = rng.standard_normal((16, 64)).astype(np.float32)
    packed = pack_int8(plain)
    fewer = {bits: random_palette(rng, 1, 192, 3, bits) for bits in (3, 2)}
    arrays: Arrays = {
        **palette,
        **{f"{bits}{name}": part for bits, (parts, _) in fewer.items() for name, part in parts.items()},
        "p.weight": ("BF16", bf16_from_float32(plain)),
        "i.weight_int8": ("U8", packed["int8"]),
        "i.weight_row_scales": ("F16", packed["row_scales"]),
    }
    with Checkpoint(write(tmp_path / "m", arrays)) as checkpoint:
        assert [is_packed(checkpoint, module) for module in ("w", "i", "p")] == [True, True, False]
        np.testing.assert_allclose(dequantize_tensor(checkpoint, "w"), palette_weight, rtol=2e-7)
        for bits, (_, weight) in fewer.items():
            np.testing.assert_allclose(dequantize_tensor(checkpoint, f"{bits}w"), weight, rtol=2e-7)
        np.testing.assert_array_equal(
            dequantize_tensor(checkpoint, "p"), float32_from_bf16(bf16_from_float32(plain))
        )
        np.testing.assert_array_equal(
            dequantize_tensor(checkpoint, "i"), unpack_int8(packed["int8"], packed["row_scales"])
        )


DAMAGED: dict[str, Callable[[Arrays], object]] = {
    "no tables": lambda t: t.pop("w.weight_tables"),
    "no table scales": lambda t: t.pop("w.weight_table_scales"),
    "no row scales": lambda t: t.pop("w.weight_row_scales"),
    "no int8 row scales": lambda t: t.pop("i.weight_row_scales"),
    "tables of other columns": lambda t: t.update({"w.weight_tables": ("I8", np.zeros((2, 4, 16), np.int8))}),
    "tables that do not divide": lambda t: t.update(
        {"w.weight_tables": ("I8", np.zeros((2, 3, 16), np.int8))}
    ),
    "tables of other groups": lambda t: t.update({"w.weight_tables": ("I8", np.zeros((1, 2, 16), np.int8))}),
    "3-bit tables": lambda t: t.update({"w.weight_tables": ("I8", np.zeros((2, 2, 8), np.int8))}),
    "2-bit tables of 85 columns": lambda t: t.update(
        {"w.weight_tables": ("I8", np.zeros((2, 3, 4), np.int8))}
    ),
    "3-bit indices": lambda t: t.update({"w.weight_indices": ("U8", np.zeros((2, 4, 3, 64), np.uint8))}),
    "2-bit indices": lambda t: t.update({"w.weight_indices": ("U8", np.zeros((2, 8, 64), np.uint8))}),
    "3-bit indices in flat lines": lambda t: t.update(
        {
            "w.weight_tables": ("I8", np.zeros((2, 2, 8), np.int8)),
            "w.weight_indices": ("U8", np.zeros((2, 12, 64), np.uint8)),
        }
    ),
    "32 colours": lambda t: t.update({"w.weight_tables": ("I8", np.zeros((2, 2, 32), np.int8))}),
    "2 colours": lambda t: t.update({"w.weight_tables": ("I8", np.zeros((2, 2, 2), np.int8))}),
    "12 colours": lambda t: t.update({"w.weight_tables": ("I8", np.zeros((2, 2, 12), np.int8))}),
    "flat tables": lambda t: t.update({"w.weight_tables": ("I8", np.zeros(64, np.int8))}),
    "flat indices": lambda t: t.update({"w.weight_indices": ("U8", np.zeros(2048, np.uint8))}),
    "other lines": lambda t: t.update({"w.weight_indices": ("U8", np.zeros((2, 32, 32), np.uint8))}),
    "too few row scales": lambda t: t.update({"w.weight_row_scales": ("F16", np.zeros(16, np.float16))}),
    "indices in float32": lambda t: t.update(
        {"w.weight_indices": ("F32", np.zeros((2, 16, 64), np.float32))}
    ),
    "tables in float32": lambda t: t.update({"w.weight_tables": ("F32", np.zeros((2, 2, 16), np.float32))}),
    "row scales in bf16": lambda t: t.update({"w.weight_row_scales": ("BF16", np.zeros(32, np.uint16))}),
    "flat int8": lambda t: t.update({"i.weight_int8": ("U8", np.zeros(1024, np.uint8))}),
    "signed int8": lambda t: t.update({"i.weight_int8": ("I8", np.zeros((1, 16, 64), np.int8))}),
    "int8 scales of other rows": lambda t: t.update(
        {"i.weight_row_scales": ("F16", np.zeros(32, np.float16))}
    ),
    "plain in float32": lambda t: t.update({"p.weight": ("F32", np.ones((16, 64), np.float32))}),
    "plain in float16": lambda t: t.update({"p.weight": ("F16", np.ones((16, 64), np.float16))}),
    "no plain weight": lambda t: t.pop("p.weight"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_parts_that_do_not_fit_are_an_error_that_names_them(damage: str, tmp_path: Path) -> None:
    arrays, _ = random_palette(np.random.default_rng(2), 2, 128, 2)
    arrays["i.weight_int8"] = ("U8", np.zeros((1, 16, 64), np.uint8))
    arrays["i.weight_row_scales"] = ("F16", np.zeros(16, np.float16))
    arrays["p.weight"] = ("BF16", np.zeros((16, 64), np.uint16))
    DAMAGED[damage](arrays)
    directory = write(tmp_path / "m", arrays)
    with Checkpoint(directory) as checkpoint, pytest.raises(PomonaError) as caught:
        _ = [dequantize_tensor(checkpoint, module) for module in ("w", "i", "p")]
    message = str(caught.value)
    assert message.startswith(str(directory))
    assert ".weight" in message
    assert "\n" not in message


# --- fingerprint


def test_the_fingerprint_changes_with_every_part_of_a_tensor(tmp_path: Path) -> None:
    base: Arrays = {"a": ("BF16", np.arange(8, dtype=np.uint16)), "b": ("U8", np.zeros(4, np.uint8))}
    variants: list[Arrays] = [
        base,
        {**base, "a": ("BF16", np.arange(1, 9, dtype=np.uint16))},
        {**base, "a": ("F16", np.arange(8, dtype=np.uint16).view(np.float16))},
        {**base, "a": ("BF16", np.arange(8, dtype=np.uint16).reshape(2, 4))},
        {"c": base["a"], "b": base["b"]},
        {"a": base["a"]},
    ]
    marks = []
    for number, arrays in enumerate(variants):
        with Checkpoint(write(tmp_path / str(number), arrays)) as checkpoint:
            marks.append(fingerprint(checkpoint))
    assert len(set(marks)) == len(variants)
    assert all(len(mark) == 32 and set(mark) <= set("0123456789abcdef") for mark in marks)
    with Checkpoint(write(tmp_path / "other order", dict(reversed(base.items())))) as checkpoint:
        assert fingerprint(checkpoint) == marks[0]


# --- quantization_config


GOOD = {
    "quant_method": "palettized",
    "version": 1,
    "base_fingerprint": "0" * 32,
    "bits": {"a.q_proj": 4, "a.k_proj": 3, "a.v_proj": 2, "lm_head": 8},
}


def test_the_config_goes_through_json_and_back() -> None:
    config = QuantizationConfig("0" * 32, {"a.q_proj": 4, "a.k_proj": 3, "a.v_proj": 2, "lm_head": 8})
    assert config.to_json() == GOOD
    raw = json.loads(json.dumps({"quantization_config": config.to_json()}))
    assert read_quantization_config(raw) == config


@pytest.mark.parametrize("raw", [{}, {"quantization_config": None}])
def test_a_plain_model_has_none(raw: dict[str, Any]) -> None:
    assert read_quantization_config(raw) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quant_method": "gptq"}, "'gptq' is not supported"),
        ({"quant_method": None}, "is not supported"),
        ({"version": 2}, "version 2, this pomona reads 1"),
        ({"version": None}, "version None"),
        ({"group_size": 32}, r"unknown keys \['group_size'\]"),
        ({"base_fingerprint": None}, "no valid base_fingerprint and bits"),
        ({"bits": None}, "no valid base_fingerprint and bits"),
        ({"bits": {"a": 1}}, "no valid base_fingerprint and bits"),
        ({"bits": {"a": 3.5}}, "no valid base_fingerprint and bits"),
        ({"bits": {"a": 16}}, "no valid base_fingerprint and bits"),
        ({"bits": {"a": "4"}}, "no valid base_fingerprint and bits"),
        ({"bits": {"a": None}}, "no valid base_fingerprint and bits"),
        ({"bits": [4, 8]}, "no valid base_fingerprint and bits"),
    ],
)
def test_another_config_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(PomonaError, match=message) as caught:
        read_quantization_config(
            {"quantization_config": {**copy.deepcopy(GOOD), **change}}, "dir/config.json"
        )
    assert str(caught.value).startswith("dir/config.json: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("raw", ["bitsandbytes", 4, [], {}, {"load_in_4bit": True}])
def test_what_is_no_such_config_at_all_is_refused(raw: object) -> None:
    with pytest.raises(PomonaError, match="is not supported"):
        read_quantization_config({"quantization_config": raw})


# --- sizes of a directory


def test_a_plain_model_has_16_bits(small_dir: Path) -> None:
    description = describe(small_dir)
    config = ModelConfig.from_directory(small_dir)
    assert {t.name: t.shape for t in description.tensors} == config.tensor_shapes()
    assert {(t.format, t.bits) for t in description.tensors} == {("bf16", 16.0)}
    assert all(t.bytes == 2 * math.prod(t.shape) for t in description.tensors)
    assert description.projection_bits_per_weight == 16.0
    file_bytes = (small_dir / "model.safetensors").stat().st_size
    weights = sum(math.prod(t.shape) for t in description.tensors)
    assert description.file_bytes == file_bytes
    assert description.file_bits_per_weight == 8 * file_bytes / weights
    with Checkpoint(small_dir) as checkpoint:
        assert description.fingerprint == fingerprint(checkpoint)


def test_a_compressed_model_counts_tables_and_scales(small_4bit_dir: Path) -> None:
    description = describe(small_4bit_dir)
    config = ModelConfig.from_directory(small_4bit_dir)
    linear = {f"{module}.weight" for module in config.linear_shapes()}
    weights = projections = 0
    for tensor in description.tensors:
        rows, columns = tensor.shape[0], math.prod(tensor.shape[1:])
        weights += rows * columns
        if tensor.name in linear:
            projections += tensor.bytes
            assert tensor.format == "palette4"
            # 64 columns to a table: half a byte per weight, 18 bytes per 1024 weights, 2 per row
            assert tensor.bytes == rows * columns // 2 + 18 * rows * columns // 1024 + 2 * rows
        elif len(tensor.shape) == 2:
            assert tensor.format == "int8"
            assert tensor.bytes == rows * columns + 2 * rows
        else:
            assert tensor.format == "bf16"
            assert tensor.bytes == 2 * rows
        assert tensor.bits == 8 * tensor.bytes / (rows * columns)
    count = sum(math.prod(shape) for shape in config.linear_shapes().values())
    assert description.projection_bits_per_weight == pytest.approx(8 * projections / count)
    assert description.file_bytes == (small_4bit_dir / "model.safetensors").stat().st_size
    assert description.file_bits_per_weight == pytest.approx(8 * description.file_bytes / weights)


@pytest.mark.parametrize("bits", [3, 2])
def test_fewer_bits_are_named_and_counted(small_dir: Path, tmp_path: Path, bits: int) -> None:
    compress(small_dir, tmp_path / "out", bits=bits, calibration="none", table_columns=64)
    linear = {f"{module}.weight" for module in ModelConfig.from_directory(small_dir).linear_shapes()}
    described = {t.name: t for t in describe(tmp_path / "out").tensors}
    assert {described[name].format for name in linear} == {f"palette{bits}"}
    for name in linear:
        rows, columns = described[name].shape
        tables = ((1 << bits) + 2) * rows * columns // 1024
        assert described[name].bytes == rows * columns * bits // 8 + tables + 2 * rows
    quantization = read_quantization_config(
        json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    )
    assert quantization is not None
    assert {quantization.bits[name.removesuffix(".weight")] for name in linear} == {bits}


def test_a_missing_tensor_is_named(small_4bit_dir: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(small_4bit_dir, broken)
    with Checkpoint(small_4bit_dir) as checkpoint:
        arrays: Arrays = {
            name: (info.dtype, checkpoint.array(name))
            for name, info in checkpoint.tensors.items()
            if not name.startswith("model.layers.1.mlp.down_proj")
        }
        (broken / "model.safetensors").unlink()
        specs = [TensorSpec(name, dtype, array.shape) for name, (dtype, array) in arrays.items()]
        with SafetensorsWriter(broken / "model.safetensors", specs) as writer:
            for name, (_, array) in arrays.items():
                writer.write(name, array)
    with pytest.raises(PomonaError, match=r"model\.layers\.1\.mlp\.down_proj\.weight is missing"):
        describe(broken)
