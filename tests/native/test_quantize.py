"""How activations are rounded: blocks of 64 at 8 bits where that costs the row little, at 15 bits elsewhere.

The identity matrix shows what a kernel has made of its activations.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_definition import (
    ACTIVATIONS,
    COARSE_ERROR,
    ISAS,
    LARGEST,
    SMALLEST,
    Floats,
    activation_block,
    int8_matrix,
    multiply,
    quantize,
    random_int8,
    random_palette,
    same_bits,
)
from numpy.typing import NDArray


def seen(isa: str, x_MK: Floats) -> Floats:
    """The activations as the kernels see them: x_q s."""
    columns = x_MK.shape[1]
    identity = int8_matrix(np.eye(columns, dtype=np.int64), np.ones(columns, np.float16))
    return multiply(isa, columns, identity.tensors, x_MK)


def squares(x: NDArray[np.floating]) -> NDArray[np.float64]:
    total: NDArray[np.float64] = (x.astype(np.float64) ** 2).sum(axis=-1)
    return total


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 12),
    st.lists(st.sampled_from(ACTIVATIONS), min_size=1, max_size=4),
)
@settings(max_examples=100, deadline=None)
def test_every_instruction_set_rounds_by_the_definition(seed: int, blocks: int, kinds: list[str]) -> None:
    rng = np.random.default_rng(seed)
    x = np.concatenate([activation_block(rng, kinds[rng.integers(len(kinds))]) for _ in range(3 * blocks)])
    x = x.reshape(3, 64 * blocks)
    expected = quantize(x).values.astype(np.float32)
    for isa in ISAS:
        np.testing.assert_array_equal(seen(isa, x), expected, err_msg=isa)


@given(st.integers(0, 2**32 - 1), st.integers(1, 24), st.floats(-3, 3), st.integers(0, 4))
@settings(max_examples=100, deadline=None)
def test_the_rounding_error_of_a_row_is_small_against_the_row(
    seed: int, blocks: int, size: float, outliers: int
) -> None:
    """A coarse block adds at most 3 kCoarseError of the energy, all values half-way; as a rule a third."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((1, 64 * blocks)) * 10.0**size).astype(np.float32)
    x[0, rng.choice(64 * blocks, outliers)] *= np.float32(10.0 ** rng.uniform(1, 4))
    quantized = quantize(x)
    coarse = blocks - int(quantized.fine_MB.sum())
    fine_part = squares(quantized.lost * np.repeat(quantized.fine_MB, 64, axis=1))[0]
    for isa in ISAS:
        error = squares(seen(isa, x) - x.astype(np.float64))[0]
        assert error <= 3.1 * coarse * COARSE_ERROR * squares(x)[0] + fine_part, isa


@pytest.mark.parametrize("isa", ISAS)
def test_a_block_with_an_outlier_is_fine_and_its_neighbours_are_coarse(isa: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 576)).astype(np.float32)
    x[:, 200] = 1000.0  # in block 3
    error = np.abs(seen(isa, x) - x).reshape(8, 9, 64)
    assert error[:, 3].max() < 0.51 * 1000 / 16256  # at 8 bits, all values but the outlier would be zero
    neighbours = np.delete(error, 3, axis=1)
    largest = np.delete(np.abs(x).reshape(8, 9, 64).max(axis=2), 3, axis=1)
    assert (neighbours.max(axis=2) > 0.4 * largest / 127).all()
    assert (neighbours.max(axis=2) < 0.51 * largest / 127).all()


@pytest.mark.parametrize("isa", ISAS)
def test_a_small_block_beside_large_ones_is_coarse(isa: str) -> None:
    """Its steps are as small as itself: 8 bits are 8 bits of the block, not of the row."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((4, 192)).astype(np.float32)
    x[:, 64:128] *= 1e-3
    error = np.abs(seen(isa, x) - x).reshape(4, 3, 64).max(axis=2)
    largest = np.abs(x).reshape(4, 3, 64).max(axis=2)
    assert (error[:, 1] > 0.4 * largest[:, 1] / 127).all()
    assert (error[:, [0, 2]] < 0.51 * largest[:, [0, 2]] / 16256).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["palette", "int8"])
@pytest.mark.parametrize(
    ("blocks", "low", "high"),
    [
        (3, 1e-5, 6e-5),  # few blocks, of which each is much of the row: all fine
        (36, 4e-3, 8e-3),  # all coarse: the root of 36 blocks of about kCoarseError / 6 each
    ],
)
def test_the_error_of_a_product_is_that_of_its_activations(
    isa: str, kind: str, blocks: int, low: float, high: float
) -> None:
    """On normal inputs a fine step is about 2.5 sigma / 16256, a coarse one 2.5 sigma / 127."""
    rng = np.random.default_rng(1)
    packed = random_palette(rng, 8, blocks, 3) if kind == "palette" else random_int8(rng, 8, blocks)
    x = rng.standard_normal((16, 64 * blocks)).astype(np.float32)
    assert quantize(x).fine_MB.mean() == (1.0 if blocks == 3 else 0.0)
    exact = x.astype(np.float64) @ packed.weight().T
    error = multiply(isa, packed.rows, packed.tensors, x) - exact
    relative = float(np.sqrt((error**2).mean() / (exact**2).mean()))
    assert low < relative < high
    assert relative**2 < blocks * COARSE_ERROR


@pytest.mark.parametrize("isa", ISAS)
def test_the_rule_looks_at_the_row_alone_and_not_at_its_size(isa: str) -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((1, 640)).astype(np.float32)
    x[0, 7] = 60.0
    small, large = x * np.float32(2.0**-60), x * np.float32(2.0**60)
    plain = seen(isa, x)
    assert same_bits(seen(isa, small), plain * np.float32(2.0**-60))
    assert same_bits(seen(isa, large), plain * np.float32(2.0**60))
    batch = np.concatenate([large, x, np.zeros_like(x), small])
    assert same_bits(seen(isa, batch)[1:2], plain)


@pytest.mark.parametrize("isa", ISAS)
def test_at_the_limits_a_block_is_kept_or_counts_as_zeros(isa: str) -> None:
    for limit, inside, outside in (
        (SMALLEST, np.float32(np.inf), np.float32(0)),
        (LARGEST, np.float32(0), np.float32(np.inf)),
    ):
        for value, kept in (
            (np.nextafter(limit, inside), True),
            (limit, False),
            (np.nextafter(limit, outside), False),
        ):
            x = np.zeros((1, 128), np.float32)
            x[0, [3, 70]] = -value, 1.0
            assert (seen(isa, x)[0, 3] != 0) == kept, value
            assert seen(isa, x)[0, 70] == 1.0
