"""How every weight of a model is stored, and the packing of one (formats: models/palettized.py)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pomona.compression.moments import InputMoments
from pomona.compression.palettize import Method, palettize
from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.palettized import (
    BLOCK,
    can_pack,
    int8_specs,
    pack_int8,
    palette_specs,
    unpack_int8,
)
from pomona.models.safetensors_file import Checkpoint, TensorSpec, float32_from_bf16

Format = Literal["palette", "int8", "copy"]
WIDTHS = (8, 4, 3, 2)  # of a projection; 8 is the int8 format
EMBEDDING_WIDTHS = (8, 4, 3)  # of embedding and head, where nobody pins another
EMBEDDINGS = ("model.embed_tokens", "lm_head")


@dataclass(frozen=True)
class Plan:
    """How one weight is stored. bits: of an index or a value; 16 for a copy."""

    name: str
    shape: tuple[int, ...]
    format: Format
    specs: tuple[TensorSpec, ...]
    table_columns: int = 0
    bits: int = 16

    @property
    def module(self) -> str:
        return self.name.removesuffix(".weight")

    @property
    def nbytes(self) -> int:
        return sum(spec.nbytes for spec in self.specs)

    @property
    def weights(self) -> int:
        return math.prod(self.shape)


def plan_weights(config: ModelConfig, table_columns: int, bits: Mapping[str, int]) -> list[Plan]:
    """One plan for every tensor of the model. bits: module -> 8, 4, 3 or 2; embedding and head take 8 where
    it does not say. Matrices that cannot be packed are copied."""
    linear = config.linear_shapes()
    plans = []
    for name, shape in config.tensor_shapes().items():
        module = name.removesuffix(".weight")
        if (module in linear or module in EMBEDDINGS) and can_pack(shape[0], shape[1]):
            width = bits.get(module, 8) if module in EMBEDDINGS else bits[module]
            plans.append(plan_matrix(module, (shape[0], shape[1]), table_columns, width))
        else:
            plans.append(Plan(name, shape, "copy", (TensorSpec(name, "BF16", shape),)))
    return plans


def plan_matrix(module: str, shape: tuple[int, int], table_columns: int, bits: int) -> Plan:
    """A projection, embedding or head at one width."""
    name = f"{module}.weight"
    if bits == 8:
        return Plan(name, shape, "int8", tuple(int8_specs(module, *shape)), bits=8)
    columns = _table_columns(shape[1], table_columns)
    return Plan(name, shape, "palette", tuple(palette_specs(module, *shape, columns, bits)), columns, bits)


def header_bytes(plans: Sequence[Plan]) -> int:
    """What the header of the weights file takes at the most, whichever widths the matrices get."""
    specs: list[TensorSpec] = []
    for plan in plans:
        palette = plan.format != "copy"
        specs += palette_specs(plan.module, plan.shape[0], plan.shape[1], BLOCK, 3) if palette else plan.specs
    longest = max((len(str(spec.nbytes)) for spec in specs), default=0) + 4  # digits of an offset
    entry = len('"":{"dtype":"BF16","shape":[,,,],"data_offsets":[,]},') + 4 * 8 + 2 * longest
    return 512 + sum(len(spec.name) + entry for spec in specs)


def _table_columns(columns: int, wanted: int) -> int:
    """The largest multiple of 64 that divides `columns` and is at most `wanted`."""
    return max(c for c in range(BLOCK, min(columns, max(wanted, BLOCK)) + 1, BLOCK) if columns % c == 0)


@dataclass(frozen=True)
class Packed:
    """The stored arrays of a weight by tensor name, and its relative error under the moments of its input."""

    arrays: dict[str, NDArray[Any]]
    relative_error: float


def pack(
    checkpoint: Checkpoint,
    plan: Plan,
    moments: InputMoments | None,
    method: Method,
    threads: int,
    rows: NDArray[np.intp] | None = None,
) -> Packed:
    """Packs one weight of a 16-bit checkpoint, or these `rows` of it (whole groups of 16).

    PomonaError: not bf16, not finite, too large for a scale.
    """
    stored, where = checkpoint.array(plan.name), checkpoint.directory
    if stored.dtype != np.uint16 or stored.shape != plan.shape:
        raise PomonaError(
            f"{where}: tensor {plan.name!r} is not BF16 {list(plan.shape)}; pull the model again"
        )
    if rows is not None:
        stored = stored[rows]
    if ((stored & 0x7F80) == 0x7F80).any():
        raise PomonaError(
            f"{where}: tensor {plan.name!r} holds a value that is not finite; get a sound checkpoint"
        )
    if plan.format == "copy":
        return Packed({plan.name: stored}, 0.0)
    weight = float32_from_bf16(stored)
    if plan.format == "int8":
        if float(np.abs(weight).max()) > 127 * 60_000.0:
            raise PomonaError(f"{where}: a row of {plan.name!r} is too large for its float16 scale")
        parts: dict[str, NDArray[Any]] = pack_int8(weight)
        error = _relative_error(weight, unpack_int8(parts["int8"], parts["row_scales"]), moments)
    else:
        try:
            result = palettize(weight, moments, plan.bits, plan.table_columns, method=method, threads=threads)
        except PomonaError as refusal:
            raise PomonaError(f"{where}: tensor {plan.name!r}: {refusal}") from refusal
        parts, error = result.parts, result.relative_error
    return Packed({f"{plan.name}_{part}": array for part, array in parts.items()}, error)


def _relative_error(
    weight_NK: NDArray[np.float32], packed_NK: NDArray[np.float32], moments: InputMoments | None
) -> float:
    weigh = moments.importance() if moments is not None else np.ones(weight_NK.shape[1], np.float32)
    error = norm = 0.0
    for start in range(0, len(weight_NK), 8192):  # an embedding is large
        rows = slice(start, start + 8192)
        norm += float(((weight_NK[rows] ** 2) @ weigh).sum())
        error += float((((packed_NK[rows] - weight_NK[rows]) ** 2) @ weigh).sum())
    return math.sqrt(error / norm) if norm > 0 else 0.0
