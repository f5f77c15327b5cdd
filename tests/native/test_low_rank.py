"""The low-rank kernels: every instruction set against float64 and, bit for bit, against the scalar one; the
same for any number of rows and any division of the work; what int8 costs.

Shape letters: M activation rows, N output rows, K input columns, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pomona import _native
from pomona.models.safetensors_file import bf16_from_float32, float32_from_bf16

ISAS = _native.available_isas().split()
PRECISIONS = ("bf16", "int8")
EPS = 2.0**-24
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
MODULES = {
    p: f"model.layers.0.{'mlp' if p in ('gate', 'up', 'down') else 'self_attn'}.{p}_proj" for p in PROJECTIONS
}
# Columns that are no whole segments of 64, and fewer than one.
SHAPE = {
    "vocab": 32,
    "hidden": 208,
    "ffn": 272,
    "layers": 1,
    "heads": 3,
    "kv_heads": 1,
    "head_dim": 16,
    "max_positions": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "rope_factor": 0.0,
    "rope_low_freq": 1.0,
    "rope_high_freq": 4.0,
    "rope_original_positions": 8192.0,
    "qk_norm": False,
    "qkv_bias": False,
    "tied": True,
}
SIZES = {  # N, K
    "q": (48, 208),
    "k": (16, 208),
    "v": (16, 208),
    "o": (208, 48),
    "gate": (272, 208),
    "up": (272, 208),
    "down": (208, 272),
}

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Factors:
    a_RK: Floats
    b_NR: Floats
    scale: float


def random_factors(seed: int, ranks: dict[str, int]) -> dict[str, Factors]:
    rng = np.random.default_rng(seed)
    made = {}
    for projection, rank in ranks.items():
        rows, columns = SIZES[projection]
        a_RK = rng.normal(size=(rank, columns)) * rng.uniform(0.01, 3, (rank, 1))
        b_NR = rng.normal(size=(rows, rank)) * rng.uniform(0.01, 3, rank)
        rounded = [float32_from_bf16(bf16_from_float32(x.astype(np.float32))) for x in (a_RK, b_NR)]
        made[projection] = Factors(*rounded, float(rng.uniform(0.1, 4)))
    return made


def native(factors: dict[str, Factors], precision: str) -> _native.Adapter:
    tensors: dict[str, tuple[str, NDArray[Any]]] = {}
    for projection, f in factors.items():
        tensors[f"{MODULES[projection]}.lora_A.weight"] = ("F32", f.a_RK)
        tensors[f"{MODULES[projection]}.lora_B.weight"] = ("F32", f.b_NR)
    scales = {MODULES[projection]: f.scale for projection, f in factors.items()}
    return _native.Adapter(SHAPE, tensors, scales, precision)


def product(adapter: _native.Adapter, isa: str, projection: str, x_MK: Floats, units: int = 0) -> Floats:
    return adapter.product(isa, 0, PROJECTIONS.index(projection), x_MK, units)


def exact(f: Factors, x_MK: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[M, N] scale * B (A x) in float64, and the same of the absolute values."""
    a, b, x = (v.astype(np.float64) for v in (f.a_RK, f.b_NR, x_MK))
    return x @ a.T @ b.T * f.scale, np.abs(x) @ np.abs(a).T @ np.abs(b).T * f.scale


def rows_of(seed: int, count: int, columns: int) -> Floats:
    return np.random.default_rng(seed).normal(size=(count, columns)).astype(np.float32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "ranks", [dict.fromkeys(PROJECTIONS, 16), {"q": 1, "v": 40, "o": 7, "up": 3, "down": 64}]
)
def test_bf16_is_the_product_to_rounding(isa: str, ranks: dict[str, int]) -> None:
    factors = random_factors(1, ranks)
    adapter = native(factors, "bf16")
    for projection, f in factors.items():
        x_MK = rows_of(2, 5, f.a_RK.shape[1])
        expected, magnitude = exact(f, x_MK)
        error = np.abs(product(adapter, isa, projection, x_MK) - expected)
        assert (error <= (sum(f.a_RK.shape) + 8) * EPS * magnitude).all(), projection
        assert np.abs(expected).max() > 0.1


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    precision=st.sampled_from(PRECISIONS),
    ranks=st.dictionaries(
        st.sampled_from(PROJECTIONS), st.sampled_from([1, 2, 5, 8, 16, 17, 33]), min_size=1
    ),
    rows=st.integers(1, 11),
    units=st.integers(0, 12),
)
def test_isas_divisions_and_batches_give_the_same_bits(
    seed: int, precision: str, ranks: dict[str, int], rows: int, units: int
) -> None:
    factors = random_factors(seed, ranks)
    adapter = native(factors, precision)
    for projection, f in factors.items():
        x_MK = rows_of(seed + 1, rows, f.a_RK.shape[1])
        reference = product(adapter, "scalar", projection, x_MK)
        assert np.isfinite(reference).all() and reference.any()
        for isa in ISAS:
            assert np.array_equal(product(adapter, isa, projection, x_MK, units), reference), isa
            last = product(adapter, isa, projection, x_MK[-1:], units)
            assert np.array_equal(last, reference[-1:]), isa


@pytest.mark.parametrize("rank", [4, 16])
def test_int8_is_within_a_hundredth_of_bf16(rank: int) -> None:
    factors = random_factors(3, dict.fromkeys(PROJECTIONS, rank))
    adapter = native(factors, "int8")
    for projection, f in factors.items():
        x_MK = rows_of(4, 20, f.a_RK.shape[1])
        expected, _ = exact(f, x_MK)
        error = product(adapter, ISAS[0], projection, x_MK) - expected
        relative = np.linalg.norm(error) / np.linalg.norm(expected)
        assert 1e-4 < relative < 0.015, (projection, relative)


def test_a_large_column_or_row_spoils_only_its_neighbours_in_int8() -> None:
    """One column of A and one row of B a hundred times the others, as trained adapters have them."""
    f = random_factors(5, {"down": 16})["down"]
    a_RK, b_NR = f.a_RK.copy(), f.b_NR.copy()
    a_RK[:, 100] *= 100
    b_NR[50] *= 100
    large = Factors(a_RK, b_NR, f.scale)
    x_MK = rows_of(6, 20, a_RK.shape[1])
    x_MK[:, 64:128] = 0  # the segment of the large column
    expected, _ = exact(large, x_MK)
    error = product(native({"down": large}, "int8"), ISAS[0], "down", x_MK) - expected
    others = np.r_[0:48, 64:208]  # without the group of the large row
    assert np.linalg.norm(error[:, others]) < 0.015 * np.linalg.norm(expected[:, others])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_factors_of_zeros_give_zeros(precision: str) -> None:
    f = random_factors(7, {"q": 16, "k": 16})
    zero_a = {**f, "q": Factors(np.zeros_like(f["q"].a_RK), f["q"].b_NR, 1.0)}
    zero_b = {**f, "q": Factors(f["q"].a_RK, np.zeros_like(f["q"].b_NR), 1.0)}
    x_MK = rows_of(8, 3, 208)
    for factors in (zero_a, zero_b):
        for isa in ISAS:
            assert not product(native(factors, precision), isa, "q", x_MK).any()
            other = product(native(factors, precision), isa, "k", x_MK)
            assert np.array_equal(other, product(native(f, precision), isa, "k", x_MK))


def test_int8_halves_the_bytes() -> None:
    factors = random_factors(9, dict.fromkeys(PROJECTIONS, 16))
    weights = sum(f.a_RK.size + f.b_NR.size for f in factors.values())
    bf16, int8 = (native(factors, p).bytes for p in PRECISIONS)
    assert 2 * weights <= bf16 < 2.1 * weights
    assert weights <= int8 < 1.2 * weights  # in a matrix this small, scales and alignment weigh most


def test_no_other_precision_is_taken() -> None:
    with pytest.raises(ValueError, match="bf16 or int8"):
        native(random_factors(0, {"q": 4}), "int4")
