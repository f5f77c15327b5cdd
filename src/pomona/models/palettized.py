"""The packed tensors of a compressed model: names, layouts, sizes (DESIGN: the model directory).

A module `M` (say `model.layers.0.self_attn.q_proj`, weight [N, K]) is stored as one of

    bf16      M.weight               BF16 [N, K]
    int8      M.weight_int8          U8   [N/16, K/4, 64]   byte 4 r + j = weight[r][k + j] + 128
              M.weight_row_scales    F16  [N]
    palette   M.weight_indices       U8   4 bits: [N/16, K/8, 64]; 2 bits: [N/16, K/16, 64];
                                          3 bits: [N/16, K/32, 3, 64]; unpack_indices() says how
              M.weight_tables        I8   [N/16, K/C, 2^bits]   C = table_columns, a multiple of 64
              M.weight_table_scales  F16  [N/16, K/C]
              M.weight_row_scales    F16  [N]

where r is the row within a group of 16. Projections, embedding and head may have any of these, and bits may
differ from module to module. A weight is entry * table scale * row scale (palette) or value * row scale
(int8). The kernels read these bytes as they lie; native/kernels/palette_layout.h is the other half of this
page. Packing needs N % 16 == 0 and K % 64 == 0; other matrices stay bf16.

Shape letters: N rows (outputs), K columns (inputs), G = N / 16 groups, T tables per group.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.model_directory import CONFIG_FILE, read_json_object
from pomona.models.safetensors_file import Checkpoint, TensorSpec, float32_from_bf16

GROUP_ROWS = 16
BLOCK = 64
PALETTE_BITS = (4, 3, 2)
METHOD = "palettized"
VERSION = 1

_PARTS = ("indices", "tables", "table_scales", "row_scales", "int8")


@dataclass(frozen=True)
class QuantizationConfig:
    """The "quantization_config" of config.json."""

    base_fingerprint: str
    bits: Mapping[str, int]  # module name -> 4, 3 or 2, or 8 for int8; absent: bf16

    def to_json(self) -> dict[str, Any]:
        return {
            "quant_method": METHOD,
            "version": VERSION,
            "base_fingerprint": self.base_fingerprint,
            "bits": dict(self.bits),
        }


def read_quantization_config(
    config_json: Mapping[str, Any], source: str = CONFIG_FILE
) -> QuantizationConfig | None:
    """The packed format that a config.json declares, None for a plain model; PomonaError for any other."""
    raw = config_json.get("quantization_config")
    if raw is None:
        return None
    if not isinstance(raw, dict) or raw.get("quant_method") != METHOD:
        method = raw.get("quant_method") if isinstance(raw, dict) else raw
        raise PomonaError(
            f"{source}: quantization method {method!r} is not supported; use an unquantised checkpoint"
        )
    if raw.get("version") != VERSION:
        raise PomonaError(
            f"{source}: packed format version {raw.get('version')!r}, this pomona reads {VERSION}; "
            "compress the model again"
        )
    unknown = sorted(set(raw) - {"quant_method", "version", "base_fingerprint", "bits"})
    fingerprint, bits = raw.get("base_fingerprint"), raw.get("bits")
    if (
        unknown
        or not isinstance(fingerprint, str)
        or not isinstance(bits, dict)
        or not all(isinstance(name, str) and value in (*PALETTE_BITS, 8) for name, value in bits.items())
    ):
        what = f"unknown keys {unknown}" if unknown else "no valid base_fingerprint and bits"
        raise PomonaError(f"{source}: quantization_config has {what}; compress the model again")
    return QuantizationConfig(fingerprint, bits)


def can_pack(rows: int, columns: int) -> bool:
    return rows % GROUP_ROWS == 0 and columns % BLOCK == 0


def int8_specs(module: str, rows: int, columns: int) -> list[TensorSpec]:
    return [
        TensorSpec(f"{module}.weight_int8", "U8", (rows // GROUP_ROWS, columns // 4, 64)),
        TensorSpec(f"{module}.weight_row_scales", "F16", (rows,)),
    ]


def indices_shape(rows: int, columns: int, bits: int) -> tuple[int, ...]:
    groups = rows // GROUP_ROWS
    return (groups, columns // 32, 3, 64) if bits == 3 else (groups, columns * bits // 32, 64)


def palette_specs(module: str, rows: int, columns: int, table_columns: int, bits: int) -> list[TensorSpec]:
    groups, tables = rows // GROUP_ROWS, columns // table_columns
    return [
        TensorSpec(f"{module}.weight_indices", "U8", indices_shape(rows, columns, bits)),
        TensorSpec(f"{module}.weight_tables", "I8", (groups, tables, 1 << bits)),
        TensorSpec(f"{module}.weight_table_scales", "F16", (groups, tables)),
        TensorSpec(f"{module}.weight_row_scales", "F16", (rows,)),
    ]


def pack_int8(weight_NK: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Symmetric int8 with one float16 scale per row; keys are the tensor suffixes."""
    rows, columns = weight_NK.shape
    scales = (np.abs(weight_NK).max(axis=1) / 127.0).astype(np.float16)
    # A row so small that its scale is no normal float16 is stored as zeros.
    inverse = np.divide(1.0, scales, out=np.zeros(rows, np.float32), where=scales > 0, dtype=np.float32)
    values = np.clip(np.rint(weight_NK * inverse[:, None]), -127, 127).astype(np.int16) + 128
    lines = values.astype(np.uint8).reshape(rows // GROUP_ROWS, GROUP_ROWS, columns // 4, 4)
    return {
        "int8": np.ascontiguousarray(lines.transpose(0, 2, 1, 3)).reshape(
            rows // GROUP_ROWS, columns // 4, 64
        ),
        "row_scales": scales,
    }


def unpack_int8(packed_GK64: NDArray[np.uint8], row_scales: NDArray[np.float16]) -> NDArray[np.float32]:
    groups, lines, _ = packed_GK64.shape
    values = (
        packed_GK64.reshape(groups, lines, GROUP_ROWS, 4).transpose(0, 2, 1, 3).astype(np.float32) - 128.0
    )
    weight: NDArray[np.float32] = (
        values.reshape(groups * GROUP_ROWS, lines * 4) * row_scales.astype(np.float32)[:, None]
    )
    return weight


def unpack_indices(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """The table indices [N, K] from their packed bytes.

    4 and 2 bits: byte 4 r + j of a line holds, low bits first, the columns j, j + 4, ... of row r. 3 bits:
    the 64-bit word p of three lines holds 24 bits for each four columns, first row 2 p, then row 2 p + 1.
    """
    groups, lines = packed.shape[:2]
    if bits == 3:
        words = packed.reshape(groups, lines, 3, 8, 8).transpose(0, 1, 3, 2, 4)  # [G, K/32, pair, 3, 8]
        stream = np.unpackbits(
            np.ascontiguousarray(words).reshape(groups, lines, 8, 24), 3, bitorder="little"
        )
        parts = stream.reshape(groups, lines, 8, 8, 2, 4, 3)  # pair, step, row of the pair, column, bit
        index = parts[..., 0] | parts[..., 1] << 1 | parts[..., 2] << 2
        rows_first = index.transpose(0, 2, 4, 1, 3, 5)  # [G, pair, row, K/32, step, column]
        return np.ascontiguousarray(rows_first).reshape(groups * GROUP_ROWS, lines * 32)
    rows_GLRJ = packed.reshape(groups, lines, GROUP_ROWS, 4)
    fields = [rows_GLRJ >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)]
    both = np.stack(fields, axis=3)  # [G, lines, 16, 8 / bits, 4]
    return np.ascontiguousarray(both.transpose(0, 2, 1, 3, 4)).reshape(groups * GROUP_ROWS, -1)


def unpack_palette(
    indices: NDArray[np.uint8],
    tables_GTC: NDArray[np.int8],
    table_scales_GT: NDArray[np.float16],
    row_scales_N: NDArray[np.float16],
) -> NDArray[np.float32]:
    """The weight [N, K] that a palettised matrix stands for."""
    index_NK = unpack_indices(indices, tables_GTC.shape[2].bit_length() - 1)
    rows, columns = index_NK.shape
    groups, tables, _ = tables_GTC.shape
    entries_GTC = tables_GTC.astype(np.float32) * table_scales_GT.astype(np.float32)[:, :, None]
    index_GRTK = index_NK.reshape(groups, GROUP_ROWS, tables, columns // tables)
    group, table = np.arange(groups)[:, None, None, None], np.arange(tables)[None, None, :, None]
    weight: NDArray[np.float32] = entries_GTC[group, table, index_GRTK].reshape(rows, columns)
    return weight * row_scales_N.astype(np.float32)[:, None]


def is_packed(checkpoint: Checkpoint, module: str) -> bool:
    return f"{module}.weight_indices" in checkpoint.tensors or f"{module}.weight_int8" in checkpoint.tensors


def dequantize_tensor(checkpoint: Checkpoint, module: str) -> NDArray[np.float32]:
    """The weight [N, K] of a module in float32, however it is stored."""

    def part(name: str, dtype: str) -> NDArray[Any]:
        info = checkpoint.tensors.get(f"{module}.weight{name}")
        if info is None:
            raise PomonaError(
                f"{checkpoint.directory}: tensor {module}.weight{name} is missing; compress the model again"
            )
        if info.dtype != dtype:
            raise PomonaError(
                f"{checkpoint.directory}: tensor {module}.weight{name} is {info.dtype}, not {dtype}; "
                "pull or compress the model again"
            )
        return checkpoint.array(info.name)

    misfit = PomonaError(
        f"{checkpoint.directory}: the parts of {module}.weight do not fit; compress the model again"
    )
    if f"{module}.weight_indices" in checkpoint.tensors:
        parts = (
            part("_indices", "U8"),
            part("_tables", "I8"),
            part("_table_scales", "F16"),
            part("_row_scales", "F16"),
        )
        indices, tables, table_scales, row_scales = parts
        if (
            tables.ndim != 3
            or row_scales.ndim != 1
            or tables.shape[2] not in (4, 8, 16)
            or tables.shape[1] < 1
        ):
            raise misfit
        rows, bits = row_scales.shape[0], tables.shape[2].bit_length() - 1
        columns = indices.size * 8 // (bits * rows) if rows else 0
        if (
            rows % GROUP_ROWS
            or columns % (tables.shape[1] * BLOCK)
            or columns < BLOCK
            or indices.shape != indices_shape(rows, columns, bits)
            or tables.shape[0] != rows // GROUP_ROWS
            or table_scales.shape != tables.shape[:2]
        ):
            raise misfit
        return unpack_palette(*parts)
    if f"{module}.weight_int8" in checkpoint.tensors:
        packed, scales = part("_int8", "U8"), part("_row_scales", "F16")
        if packed.ndim != 3 or packed.shape[2] != 64 or scales.shape != (packed.shape[0] * GROUP_ROWS,):
            raise misfit
        return unpack_int8(packed, scales)
    return float32_from_bf16(part("", "BF16"))


def fingerprint(checkpoint: Checkpoint) -> str:
    """Hash of names, types, shapes and bytes of all weights; an adapter belongs to exactly one."""
    digest = hashlib.sha256()
    for name in sorted(checkpoint.tensors):
        info = checkpoint.tensors[name]
        digest.update(f"{name}\0{info.dtype}\0{info.shape}\0".encode())
        digest.update(np.ascontiguousarray(checkpoint.array(name)).view(np.uint8).data)
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class TensorDescription:
    """One weight with all its parts. `bits` is bytes * 8 per weight: tables and scales count."""

    name: str
    shape: tuple[int, ...]
    format: str
    bits: float
    bytes: int


@dataclass(frozen=True)
class ModelDescription:
    tensors: tuple[TensorDescription, ...]
    projection_bits_per_weight: float  # the linear layers, tables and scales counted
    file_bits_per_weight: float  # everything in the weight files
    file_bytes: int
    fingerprint: str


def describe(directory: Path | str) -> ModelDescription:
    """Sizes and formats of a model directory, from its files."""
    directory = Path(directory)
    raw = read_json_object(directory / CONFIG_FILE)
    config = ModelConfig.from_hf(raw, str(directory / CONFIG_FILE))
    quantization = read_quantization_config(raw, str(directory / CONFIG_FILE))
    with Checkpoint(directory) as checkpoint:
        tensors = tuple(
            _describe_weight(checkpoint, name, shape) for name, shape in config.tensor_shapes().items()
        )
        mark = quantization.base_fingerprint if quantization else fingerprint(checkpoint)
    projections = {f"{module}.weight" for module in config.linear_shapes()}
    linear = [t for t in tensors if t.name in projections]
    weights = sum(math.prod(t.shape) for t in tensors)
    file_bytes = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    return ModelDescription(
        tensors,
        8 * sum(t.bytes for t in linear) / sum(math.prod(t.shape) for t in linear),
        8 * file_bytes / weights,
        file_bytes,
        mark,
    )


def _describe_weight(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> TensorDescription:
    stored = {
        part: checkpoint.tensors[f"{name}_{part}"]
        for part in _PARTS
        if f"{name}_{part}" in checkpoint.tensors
    }
    if not stored and name not in checkpoint.tensors:
        raise PomonaError(
            f"{checkpoint.directory}: tensor {name} is missing; pull or compress the model again"
        )
    if "tables" in stored:
        kind = f"palette{stored['tables'].shape[-1].bit_length() - 1}"
    else:
        kind = "int8" if stored else checkpoint.tensors[name].dtype.lower()
    size = sum(info.end - info.start for info in stored.values() or [checkpoint.tensors[name]])
    return TensorDescription(name, shape, kind, 8 * size / math.prod(shape), size)
