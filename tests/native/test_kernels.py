"""The matrix kernels: every instruction set of this machine against an independent definition, bit for bit
against the scalar one, and the same for any batch and any number of threads.

Shape letters: M activation rows, N output rows, K input columns, B = K / 64 blocks, G = N / 16 groups.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_definition import (
    ACTIVATIONS,
    BITS,
    EPS,
    ISAS,
    LARGEST,
    TINY,
    Doubles,
    Floats,
    Packed,
    Tensors,
    activation_block,
    multiply,
    quantize,
    random_int8,
    random_packed,
    random_palette,
    same_bits,
)
from numpy.typing import NDArray

from pomona import _native
from pomona.models.palettized import unpack_int8, unpack_palette
from pomona.models.safetensors_file import bf16_from_float32, float32_from_bf16


@dataclass(frozen=True)
class Case:
    packed: Packed
    x_MK: Floats
    threads: int


@st.composite
def cases(draw: st.DrawFn, most_rows: int = 20) -> Case:
    bits = draw(st.sampled_from((*BITS, 8)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    groups, blocks, rows = draw(st.integers(1, 7)), draw(st.integers(1, 8)), draw(st.integers(1, most_rows))
    kind, scales = draw(st.sampled_from(("plain", "extreme"))), draw(st.sampled_from(("plain", "odd")))
    kinds = draw(st.lists(st.sampled_from(ACTIVATIONS), min_size=1, max_size=4))
    tables = draw(st.sampled_from([t for t in range(1, blocks + 1) if blocks % t == 0]))
    packed = random_packed(rng, bits, groups, blocks, tables, kind=kind, scales=scales)
    x = [activation_block(rng, kinds[rng.integers(len(kinds))]) for _ in range(rows * blocks)]
    return Case(packed, np.stack(x).reshape(rows, 64 * blocks), draw(st.integers(1, 3)))


# --- packed products


@given(cases())
@settings(max_examples=150, deadline=None)
def test_packed_products_follow_the_one_definition_on_every_instruction_set(case: Case) -> None:
    expected, bound = case.packed.product(case.x_MK)
    scalar = multiply("scalar", case.packed.rows, case.packed.tensors, case.x_MK)
    assert (np.abs(scalar - expected) <= bound).all()
    for isa in ISAS:
        y = multiply(isa, case.packed.rows, case.packed.tensors, case.x_MK, case.threads)
        assert same_bits(y, scalar), isa


@given(cases(most_rows=60))
@settings(max_examples=40, deadline=None)
def test_a_row_does_not_depend_on_its_batch_or_the_threads(case: Case) -> None:
    rows, tensors, x = case.packed.rows, case.packed.tensors, case.x_MK
    for isa in ISAS:
        batch = multiply(isa, rows, tensors, x, case.threads)
        for m in range(len(x)):
            alone = multiply(isa, rows, tensors, x[m : m + 1], 1 + m % 3)
            assert same_bits(alone, batch[m : m + 1]), isa
        for threads in (1, 2, 3):
            assert same_bits(multiply(isa, rows, tensors, x, threads), batch), isa
        backwards = multiply(isa, rows, tensors, x[::-1].copy(), case.threads)
        assert same_bits(backwards[::-1].copy(), batch), isa


def dequantized(tensors: Tensors) -> Doubles:
    """The weight as the Python side of the format reads it."""
    arrays = {name.removeprefix("w.weight_"): array for name, (_, array) in tensors.items()}
    rows = arrays["row_scales"].view(np.float16)
    if "int8" in arrays:
        return unpack_int8(arrays["int8"], rows).astype(np.float64)
    tables = arrays["table_scales"].view(np.float16)
    return unpack_palette(arrays["indices"], arrays["tables"], tables, rows).astype(np.float64)


@given(cases())
@settings(max_examples=100, deadline=None)
def test_products_equal_those_of_the_dequantised_weight_up_to_the_steps_of_the_activations(
    case: Case,
) -> None:
    # Blocks that are too large are a test of their own.
    usable = np.abs(case.x_MK.reshape(len(case.x_MK), -1, 64)).max(axis=2) < LARGEST
    x = np.where(np.repeat(usable, 64, axis=1), case.x_MK, np.float32(0))
    weight = dequantized(case.packed.tensors)
    np.testing.assert_allclose(weight, case.packed.weight(), rtol=4 * EPS, atol=2 * TINY)
    quantized = quantize(x)
    # A block of next to nothing is lost whole.
    kept = np.repeat(quantized.step_MB > 0, 64, axis=1)
    lost = np.where(kept, quantized.lost, np.abs(x).astype(np.float64))
    magnitude = np.abs(x).astype(np.float64) @ np.abs(weight).T
    bound = lost @ np.abs(weight).T + (x.shape[1] / 64 + 8) * EPS * magnitude + 1e-36
    for isa in ISAS:
        y = multiply(isa, case.packed.rows, case.packed.tensors, x, case.threads)
        assert (np.abs(y - x.astype(np.float64) @ weight.T) <= bound).all(), isa


def outlier_rows(rng: np.random.Generator, rows: int, columns: int) -> Floats:
    """Fine and coarse blocks in a mixture that is different from row to row, as in the model."""
    x = rng.standard_normal((rows, columns)).astype(np.float32)
    for row in x[::2]:
        row[rng.integers(columns)] *= np.float32(10.0 ** rng.uniform(1, 4))
    return x


BATCHES = (*range(1, 21), 25, 31, 33, 40, 47, 60)  # every split into tiles of tokens


@pytest.mark.parametrize("bits", [*BITS, 8])
@pytest.mark.parametrize("groups", [1, 2, 3, 7])  # every split into tiles of groups
def test_every_kind_of_batch_gives_the_bits_of_the_scalar_definition(bits: int, groups: int) -> None:
    rng = np.random.default_rng(100 * bits + groups)
    packed = random_packed(rng, bits, groups, 6, 3)
    x = outlier_rows(rng, max(BATCHES), 384)
    fine = quantize(x).fine_MB
    assert 0.1 < fine.mean() < 0.9
    assert len({row.tobytes() for row in fine}) > 3
    expected, bound = packed.product(x)
    whole = multiply("scalar", packed.rows, packed.tensors, x)
    assert (np.abs(whole - expected) <= bound).all()
    for isa in ISAS:
        for batch in BATCHES:
            y = multiply(isa, packed.rows, packed.tensors, x[:batch], 1 + batch % 3)
            assert same_bits(y, whole[:batch]), (isa, batch)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    ("rows", "columns", "table_columns"), [(576, 576, 192), (192, 576, 576), (96, 1536, 64)]
)
def test_the_shapes_of_a_real_layer_at_several_kinds_of_batch(
    rows: int, columns: int, table_columns: int, bits: int
) -> None:
    rng = np.random.default_rng(rows)
    packed = random_palette(rng, rows // 16, columns // 64, columns // table_columns, bits=bits)
    x = outlier_rows(rng, 33, columns)
    x[:, 5] *= 300
    expected, bound = packed.product(x)
    whole = multiply("scalar", rows, packed.tensors, x)
    assert (np.abs(whole - expected) <= bound).all()
    for isa in ISAS:
        for batch in (1, 2, 7, 13, 19, 33):
            assert same_bits(multiply(isa, rows, packed.tensors, x[:batch], 1 + batch % 3), whole[:batch]), (
                isa,
                batch,
            )


@pytest.mark.parametrize("isa", ISAS)
def test_every_float16_row_scale_means_what_numpy_says(isa: str) -> None:
    """One weight of 1 in each of 65,536 rows, and an activation whose step is exactly 1."""
    halves = np.arange(1 << 16, dtype=np.uint16)
    packed = np.full(((1 << 16) // 16, 16, 64), 128, np.uint8)
    packed[:, 0, ::4] = 129
    x = np.zeros((1, 64), np.float32)
    x[0, 0] = 16256.0
    tensors: Tensors = {"w.weight_int8": ("U8", packed), "w.weight_row_scales": ("F16", halves)}
    with np.errstate(invalid="ignore"):
        expected = halves.view(np.float16).astype(np.float32) * np.float32(16256)
    np.testing.assert_array_equal(multiply(isa, 1 << 16, tensors, x)[0], expected)


@pytest.mark.parametrize("isa", ISAS)
def test_a_block_of_infinities_counts_as_zeros_and_spoils_no_other(isa: str) -> None:
    rng = np.random.default_rng(2)
    packed = random_palette(rng, 3, 4, 2)
    x = rng.standard_normal((9, 256)).astype(np.float32)
    without = x.copy()
    without[:, 64:128] = 0
    x[:, 64:128] = np.inf
    x[3, 70] = -np.inf
    assert same_bits(
        multiply(isa, packed.rows, packed.tensors, x), multiply(isa, packed.rows, packed.tensors, without)
    )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("position", [0, 7, 40, 63])
def test_a_block_with_a_nan_counts_as_zeros_and_spoils_no_other(position: int, isa: str) -> None:
    rng = np.random.default_rng(3)
    packed = random_palette(rng, 2, 3, 3)
    x = rng.standard_normal((9, 192)).astype(np.float32)
    without = x.copy()
    without[4, 64:128] = 0
    x[4, 64 + position] = np.nan
    assert same_bits(
        multiply(isa, packed.rows, packed.tensors, x), multiply(isa, packed.rows, packed.tensors, without)
    )


# --- bf16 products


@st.composite
def bf16_cases(draw: st.DrawFn) -> tuple[NDArray[np.uint16], Floats, int]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, columns = draw(st.integers(1, 70)), 16 * draw(st.integers(1, 20))
    weight = bf16_from_float32(rng.standard_normal((rows, columns)) * 10.0 ** rng.uniform(-3, 1))
    x = rng.standard_normal((draw(st.integers(1, 20)), columns))
    x[rng.random(x.shape) < 0.05] *= draw(st.sampled_from([0.0, 1e-40, 1e4, 1e20]))
    return weight, x.astype(np.float32), draw(st.integers(1, 3))


@given(bf16_cases())
@settings(max_examples=80, deadline=None)
def test_bf16_products_are_right_to_float32_rounding_and_do_not_depend_on_the_batch(
    case: tuple[NDArray[np.uint16], Floats, int],
) -> None:
    weight, x, threads = case
    tensors: Tensors = {"w.weight": ("BF16", weight)}
    exact_weight = float32_from_bf16(weight).astype(np.float64)
    exact = x.astype(np.float64) @ exact_weight.T
    magnitude = np.abs(x).astype(np.float64) @ np.abs(exact_weight).T
    for isa in ISAS:
        y = multiply(isa, len(weight), tensors, x, threads)
        assert (np.abs(y - exact) <= x.shape[1] * (EPS * magnitude + TINY)).all(), isa
        alone = np.concatenate([multiply(isa, len(weight), tensors, row[None]) for row in x])
        assert same_bits(y, alone), isa


@pytest.mark.parametrize("isa", _native.rounding_isas().split())
@given(case=bf16_cases())
@settings(max_examples=40, deadline=None)
def test_rounded_inputs_are_rounded_to_bf16_and_to_nothing_less(
    isa: str, case: tuple[NDArray[np.uint16], Floats, int]
) -> None:
    """Products of the rounded inputs, to float32 rounding; tiny ones count as zero."""
    weight, x, threads = case
    tensors: Tensors = {"w.weight": ("BF16", weight)}
    exact_weight = float32_from_bf16(weight).astype(np.float64)
    rounded = float32_from_bf16(bf16_from_float32(x)).astype(np.float64)
    magnitude = np.abs(rounded) @ np.abs(exact_weight).T
    y = multiply(isa, len(weight), tensors, x, threads)
    assert (np.abs(y - rounded @ exact_weight.T) <= x.shape[1] * (EPS * magnitude + 1e-36)).all()
    alone = np.concatenate([multiply(isa, len(weight), tensors, row[None]) for row in x])
    assert same_bits(y, alone)


def test_what_rounds_is_never_chosen_by_itself() -> None:
    rng = np.random.default_rng(5)
    tensors: Tensors = {"w.weight": ("BF16", bf16_from_float32(rng.standard_normal((32, 256))))}
    x = rng.standard_normal((3, 256)).astype(np.float32)
    found = multiply("auto", 32, tensors, x)
    assert same_bits(found, multiply("scalar", 32, tensors, x))
    for isa in _native.rounding_isas().split():
        assert isa not in ISAS and not same_bits(found, multiply(isa, 32, tensors, x))


# --- what is refused


def test_wherever_the_arrays_lie_in_memory_the_result_is_the_same() -> None:
    """Arrays of a foreign file may start anywhere; views may be strided."""
    rng = np.random.default_rng(4)
    packed = random_palette(rng, 3, 3, 3)
    x = rng.standard_normal((9, 192)).astype(np.float32)

    def moved(array: NDArray[Any]) -> NDArray[Any]:
        buffer = np.zeros(array.nbytes + 64, np.uint8)
        place = buffer[(-buffer.ctypes.data) % 64 + array.itemsize :][: array.nbytes].view(array.dtype)
        place[:] = array.reshape(-1)
        return place.reshape(array.shape)

    tensors = {name: (dtype, moved(array)) for name, (dtype, array) in packed.tensors.items()}
    strided = np.repeat(x, 2, axis=1)[:, ::2]
    for isa in ISAS:
        expected = multiply(isa, packed.rows, packed.tensors, x)
        assert same_bits(multiply(isa, packed.rows, tensors, moved(x)), expected)
        assert same_bits(multiply(isa, packed.rows, tensors, strided), expected)


# Each in a process of its own, so that a crash is a failure of its test and not the end of all of them.
REFUSED = {
    "too few bytes": "t['w.weight_indices'] = ('U8', np.zeros((1, 8, 64), np.uint8))",
    "too many rows": "rows = 32",
    "rows that are no multiple of 16": "rows = 8",
    "no rows": "rows = 0",
    "negative rows": "rows = -16",
    "no activations": "x = np.zeros((0, 128), np.float32)",
    "no columns": "t = palette(0); x = np.zeros((1, 0), np.float32)",
    "columns that are no multiple of 64": "t = palette(96); x = np.zeros((1, 96), np.float32)",
    "other columns": "x = np.zeros((1, 192), np.float32)",
    "a vector of indices": "t['w.weight_indices'] = ('U8', np.zeros(1024, np.uint8))",
    "a missing table": "del t['w.weight_tables']",
    "missing table scales": "del t['w.weight_table_scales']",
    "missing row scales": "del t['w.weight_row_scales']",
    "no tensors": "t = {}",
    "tables of 32 columns": "t['w.weight_tables'] = ('I8', np.zeros((1, 4, 16), np.int8))",
    "tables that do not divide": "t['w.weight_tables'] = ('I8', np.zeros((1, 3, 16), np.int8))",
    "no tables": "t['w.weight_tables'] = ('I8', np.zeros((1, 0, 16), np.int8))",
    "3-bit tables for 4-bit indices": "t['w.weight_tables'] = ('I8', np.zeros((1, 2, 8), np.int8))",
    "2-bit tables for 4-bit indices": "t['w.weight_tables'] = ('I8', np.zeros((1, 2, 4), np.int8))",
    "4-bit tables for 3-bit indices": "t['w.weight_indices'] = ('U8', np.zeros((1, 4, 3, 64), np.uint8))",
    "4-bit tables for 2-bit indices": "t['w.weight_indices'] = ('U8', np.zeros((1, 8, 64), np.uint8))",
    "3-bit indices in flat lines": (
        "t['w.weight_tables'] = ('I8', np.zeros((1, 2, 8), np.int8)); "
        "t['w.weight_indices'] = ('U8', np.zeros((1, 12, 64), np.uint8))"
    ),
    "tables of 32 colours": "t['w.weight_tables'] = ('I8', np.zeros((1, 2, 32), np.int8))",
    "tables of 2 colours": "t['w.weight_tables'] = ('I8', np.zeros((1, 2, 2), np.int8))",
    "tables of no colours": "t['w.weight_tables'] = ('I8', np.zeros((1, 2, 0), np.int8))",
    "scales for other tables": "t['w.weight_table_scales'] = ('F16', np.zeros((1, 1), np.uint16))",
    "another type by name": "t['w.weight_row_scales'] = ('BF16', np.zeros(16, np.uint16))",
    "an unknown type": "t['w.weight_row_scales'] = ('F8_E4M3', np.zeros(16, np.uint8))",
    "another type by size": "t['w.weight_row_scales'] = ('F16', np.zeros(16, np.float32))",
    "an unknown instruction set": "isa = 'mmx'",
    "no instruction set": "isa = ''",
    "no threads": "threads = 0",
    "negative threads": "threads = -1",
    "thousands of threads": "threads = 2_000",
    "bf16 of other columns": "t = {'w.weight': ('BF16', np.zeros((16, 64), np.uint16))}",
    "bf16 that was float32": "t = {'w.weight': ('BF16', np.zeros((16, 128), np.float32))}",
    "bf16 columns that fill no register": (
        "x = np.ones((1, 100), np.float32); t = {'w.weight': ('BF16', np.zeros((16, 100), np.uint16))}"
    ),
    "int8 of other columns": (
        "del t['w.weight_indices']; t['w.weight_int8'] = ('U8', np.zeros((1, 8, 64), np.uint8))"
    ),
    "a list for an array": "t['w.weight_indices'] = ('U8', [1, 2])",
    "a type without an array": "t['w.weight_indices'] = ('U8',)",
    "an array without a type": "t['w.weight_indices'] = np.zeros((1, 16, 64), np.uint8)",
    "a number for an array": "t['w.weight_indices'] = 5",
    "three-dimensional activations": "x = np.zeros((1, 1, 128), np.float32)",
    "whole numbers for a name": "t[5] = t['w.weight_indices']",
}
PROGRAM = """
    import numpy as np
    from pomona import _native

    def palette(columns):
        return {
            "w.weight_indices": ("U8", np.zeros((1, columns // 8, 64), np.uint8)),
            "w.weight_tables": ("I8", np.zeros((1, max(columns // 64, 1), 16), np.int8)),
            "w.weight_table_scales": ("F16", np.zeros((1, max(columns // 64, 1)), np.uint16)),
            "w.weight_row_scales": ("F16", np.zeros(16, np.uint16)),
        }

    isa, rows, t, x, threads = ISA, 16, palette(128), np.ones((1, 128), np.float32), 1
    assert (_native.multiply_packed(isa, rows, t, x, threads) == 0).all()
    CHANGE
    try:
        _native.multiply_packed(isa, rows, t, x, threads)
    except (ValueError, TypeError) as error:
        print("refused:", str(error).splitlines()[0])
"""


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused(what: str) -> None:
    program = textwrap.dedent(PROGRAM).replace("CHANGE", REFUSED[what]).replace("ISA", repr(ISAS[0]))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("refused: ")


def test_the_instruction_sets_end_with_the_scalar_one() -> None:
    assert ISAS[-1] == "scalar"
    assert len(set(ISAS)) == len(ISAS)
    packed = random_int8(np.random.default_rng(5), 1, 1)
    x = np.ones((1, 64), np.float32)
    assert same_bits(multiply("auto", 16, packed.tensors, x), multiply(ISAS[0], 16, packed.tensors, x))
