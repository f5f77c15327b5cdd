"""The definition of kernels.h, written again in numpy; random matrices and awkward activations to try it.

Shape letters: M activation rows, N output rows, K input columns, B = K / 64 blocks, G = N / 16 groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pomona import _native

ISAS = _native.available_isas().split()
BITS = (4, 3, 2)
EPS = 2.0**-24  # largest relative error of one rounding to float32
TINY = 2.0**-149
COARSE_ERROR = float(np.float32(5e-6))  # kCoarseError
SMALLEST, LARGEST = np.float32(1e-25), np.float32(1e25)  # of a block that is not taken for zeros
Tensors = dict[str, tuple[str, NDArray[Any]]]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


def multiply(isa: str, rows: int, tensors: Tensors, x_MK: Floats, threads: int = 1) -> Floats:
    y: Floats = _native.multiply_packed(isa, rows, tensors, x_MK, threads)
    assert y.shape == (len(x_MK), rows)
    assert y.dtype == np.float32
    return y


def same_bits(a: Floats, b: Floats) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


# --- activations


@dataclass(frozen=True)
class Quantized:
    """Whole numbers of 15 bits, multiples of 128 in coarse blocks; what 1 is worth; which are fine."""

    q_MBC: NDArray[np.int64]
    step_MB: Floats
    fine_MB: NDArray[np.bool_]

    @property
    def values(self) -> Doubles:
        """[M, K] what the whole numbers stand for."""
        return (self.q_MBC * self.step_MB[:, :, None].astype(np.float64)).reshape(len(self.q_MBC), -1)

    @property
    def lost(self) -> Doubles:
        """[M, K] how far they may be from the activations: half a step, and a little float32 rounding."""
        lost_MB = self.step_MB.astype(np.float64) * np.where(self.fine_MB, 0.503, 128 * 0.501)
        return np.repeat(lost_MB, 64, axis=1)


def quantize(x_MK: Floats) -> Quantized:
    x_MBC = x_MK.reshape(len(x_MK), -1, 64)
    with np.errstate(invalid="ignore"):
        largest = np.abs(x_MBC).max(axis=2)  # a NaN wherever there is one
        usable = (largest > SMALLEST) & (largest < LARGEST)
    x_MBC = np.where(usable[:, :, None], x_MBC, np.float32(0))
    safe = np.where(usable, largest, np.float32(1))
    step = np.where(usable, safe / np.float32(16256), np.float32(0))
    coarse = np.rint(x_MBC * (np.float32(127) / safe)[:, :, None]).astype(np.int64)
    squared_step = step.astype(np.float64) ** 2
    energy = np.zeros(len(x_MK))
    for block in range(x_MBC.shape[1]):
        energy += squared_step[:, block] * (coarse[:, block] ** 2).sum(axis=1)
    fine = squared_step > (energy * (COARSE_ERROR * 12 / 64))[:, None]
    inverse = np.float32(1) / np.where(usable, step, np.float32(1))
    exact = np.rint(x_MBC * inverse[:, :, None]).astype(np.int64)
    return Quantized(np.where(fine[:, :, None], exact, 128 * coarse), step, fine)


# --- weights


@dataclass(frozen=True)
class Packed:
    """A packed matrix and what it stands for: whole numbers, scales of blocks of columns, scales of rows."""

    tensors: Tensors
    values_NK: NDArray[np.int64]
    block_scales_NB: Floats
    row_scales_N: Floats

    @property
    def rows(self) -> int:
        return len(self.values_NK)

    def weight(self) -> Doubles:
        scales = np.repeat(self.block_scales_NB.astype(np.float64), 64, axis=1)
        return self.values_NK * scales * self.row_scales_N.astype(np.float64)[:, None]

    def product(self, x_MK: Floats) -> tuple[Doubles, Doubles]:
        """[M, N] the product as kernels.h defines it, in float64, and how far float32 may lead away."""
        quantized = quantize(x_MK)
        w_NBC = self.values_NK.reshape(self.rows, -1, 64)
        dots_MNB = np.einsum("mbc,nbc->mnb", quantized.q_MBC, w_NBC).astype(np.float64)
        # The one product that is float32 by definition.
        scale_MNB = quantized.step_MB[:, None, :] * self.block_scales_NB[None]
        terms = dots_MNB * scale_MNB
        rows = self.row_scales_N.astype(np.float64)
        blocks = terms.shape[2]
        bound = (blocks + 3) * EPS * np.abs(terms).sum(axis=2) + (blocks + 1) * TINY
        return terms.sum(axis=2) * rows, bound * np.abs(rows) * (1 + 4 * EPS) + TINY


def half(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> NDArray[np.float16]:
    scales = rng.uniform(0.001, 0.1, shape)
    if kind == "odd":  # zeros, subnormals, negatives, the largest
        strange = rng.choice([0.0, 6e-8, -0.03, 3e-5, 65504.0], shape)
        scales = np.where(rng.random(shape) < 0.3, strange, scales)
    return scales.astype(np.float16)


def pack_indices(index_NK: NDArray[np.int64], bits: int) -> NDArray[np.uint8]:
    """The bytes of a palette's indices, by the words of palette_layout.h."""
    groups, columns = len(index_NK) // 16, index_NK.shape[1]
    if bits == 3:  # [G, K / 32, line, word p, bit of the word]
        lines = np.zeros((groups, columns // 32, 3, 8, 64), np.uint8)
        for step in range(8):
            for r in range(16):
                for j in range(4):
                    index = index_NK[r::16, 4 * step + j :: 32]
                    for bit in range(3):
                        at = 24 * step + 3 * (4 * (r % 2) + j) + bit
                        lines[:, :, at // 64, r // 2, at % 64] = index >> bit & 1
        return np.packbits(lines, axis=4, bitorder="little").reshape(groups, columns // 32, 3, 64)
    packed = np.zeros((groups, columns * bits // 32, 64), np.uint8)
    for i in range(8 // bits):
        for r in range(16):
            for j in range(4):
                index = index_NK[r::16, 4 * i + j :: 32 // bits]
                packed[:, :, 4 * r + j] |= (index << bits * i).astype(np.uint8)
    return packed


def random_palette(
    rng: np.random.Generator,
    groups: int,
    blocks: int,
    tables: int,
    *,
    bits: int = 4,
    kind: str = "plain",
    scales: str = "plain",
) -> Packed:
    """`tables` per group, a divisor of `blocks`."""
    rows, columns, colors = 16 * groups, 64 * blocks, 1 << bits
    if kind == "extreme":
        entries = rng.choice(np.array([-127, 127], np.int8), (groups, tables, colors))
    else:
        entries = rng.integers(-128, 128, (groups, tables, colors)).astype(np.int8)
    index_NK = rng.integers(0, colors, (rows, columns))
    table_scales, row_scales = half(rng, (groups, tables), scales), half(rng, (rows,), scales)
    width = columns // tables
    group, table = np.arange(rows)[:, None] // 16, np.arange(columns)[None, :] // width
    tensors: Tensors = {
        "w.weight_indices": ("U8", pack_indices(index_NK, bits)),
        "w.weight_tables": ("I8", entries),
        "w.weight_table_scales": ("F16", table_scales.view(np.uint16)),
        "w.weight_row_scales": ("F16", row_scales.view(np.uint16)),
    }
    block_scales = np.repeat(np.repeat(table_scales.astype(np.float32), 16, axis=0), blocks // tables, axis=1)
    return Packed(
        tensors, entries[group, table, index_NK].astype(np.int64), block_scales, row_scales.astype(np.float32)
    )


def int8_matrix(values_NK: NDArray[np.int64], row_scales: NDArray[np.float16]) -> Packed:
    rows, columns = values_NK.shape
    packed = np.zeros((rows // 16, columns // 4, 64), np.uint8)
    for j in range(4):
        for r in range(16):
            packed[:, :, 4 * r + j] = values_NK[r::16, j::4] + 128
    tensors: Tensors = {
        "w.weight_int8": ("U8", packed),
        "w.weight_row_scales": ("F16", row_scales.view(np.uint16)),
    }
    ones = np.ones((rows, columns // 64), np.float32)
    return Packed(tensors, values_NK.astype(np.int64), ones, row_scales.astype(np.float32))


def random_int8(
    rng: np.random.Generator, groups: int, blocks: int, *, kind: str = "plain", scales: str = "plain"
) -> Packed:
    shape = (16 * groups, 64 * blocks)
    values = rng.integers(-128, 128, shape) if kind == "plain" else rng.choice([-127, 127], shape)
    return int8_matrix(values, half(rng, shape[:1], scales))


def random_packed(
    rng: np.random.Generator, bits: int, groups: int, blocks: int, tables: int, **options: str
) -> Packed:
    """A palette of 4, 3 or 2 bits, or, of 8 bits, plain int8 (which has no tables)."""
    if bits == 8:
        return random_int8(rng, groups, blocks, **options)
    return random_palette(rng, groups, blocks, tables, bits=bits, **options)


# --- awkward activations


ACTIVATIONS = (
    "normal",
    "outlier",
    "zero",
    "huge",
    "too huge",
    "at the largest",
    "denormal",
    "at the smallest",
    "equal",
    "single",
    "ties",
    "coarse ties",
)


def activation_block(rng: np.random.Generator, kind: str) -> Floats:
    """64 values of one kind; `ties` lie half-way between two quantised values."""
    x: NDArray[np.floating[Any]] = rng.standard_normal(64)
    if kind == "outlier":
        x[rng.integers(64)] *= 10.0 ** rng.uniform(2, 6)
    elif kind == "zero":
        x = rng.choice([0.0, -0.0], 64)
    elif kind == "huge":
        x *= 1e22  # with the largest scales: just below the end of float32
    elif kind == "too huge":  # an infinity, or too large to be scaled: the block counts as zeros
        x[rng.integers(64)] = rng.choice([np.inf, -np.inf, 2e25, -3.4e38])
    elif kind == "at the largest":
        x[:] = 0  # so that no sum overflows
        x[rng.integers(64)] = 1e25 * rng.choice([0.9999999, 1.0, 1.0000001, -0.9999999])
    elif kind == "denormal":
        x *= 1e-40
    elif kind == "at the smallest":  # on both sides of what is taken for zero
        x *= 1e-25 / np.abs(x).max() * rng.choice([0.999999, 1.0, 1.000001, 30.0])
    elif kind == "equal":
        x = rng.choice([-1.0, 1.0], 64) * 10.0 ** rng.uniform(-3, 3)
    elif kind == "single":
        x = np.zeros(64)
        x[rng.integers(64)] = rng.choice([-3.0, 3.0])
    elif kind == "ties":
        x = rng.integers(-16255, 16255, 64) + 0.5
        x[rng.integers(64)] = rng.choice([-16256.0, 16256.0])
    elif kind == "coarse ties":
        x = rng.integers(-127, 127, 64) + 0.5
        x[rng.integers(64)] = rng.choice([-127.0, 127.0])
    with np.errstate(over="ignore"):
        return x.astype(np.float32)
