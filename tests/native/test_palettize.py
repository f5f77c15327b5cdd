"""Palettes: as good as any k-means, weighted as asked, the same for any threads, packed as the kernels read.

Shape letters: N rows, K columns, C table columns, G = N / 16 groups, T = K / C tables of a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_definition import BITS, pack_indices
from numpy.typing import NDArray

from pomona import _native
from pomona.models.palettized import unpack_indices

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Palettes:
    """A result, unpacked."""

    raw: dict[str, Any]
    index_NK: NDArray[np.int64]
    entries_NK: Doubles  # entry of each weight: a whole number
    step_NK: Doubles  # what 1 of an entry is worth: table scale * row scale

    @property
    def weight(self) -> Doubles:
        return self.entries_NK * self.step_NK

    @property
    def bytes(self) -> bytes:
        return b"".join(
            self.raw[name].tobytes() for name in ("indices", "tables", "table_scales", "row_scales")
        )


def palettize(
    weight_NK: Floats,
    importance_K: Floats | None = None,
    table_columns: int | None = None,
    threads: int = 1,
    bits: int = 4,
) -> Palettes:
    rows, columns = weight_NK.shape
    width = table_columns or columns
    importance = np.ones(columns, np.float32) if importance_K is None else importance_K
    raw = _native.palettize(weight_NK, importance, bits, width, threads)
    lines = (columns // 32, 3, 64) if bits == 3 else (columns * bits // 32, 64)
    assert {
        name: (array.dtype.name, array.shape)
        for name, array in raw.items()
        if name not in ("squared_error", "squared_norm")
    } == {
        "indices": ("uint8", (rows // 16, *lines)),
        "tables": ("int8", (rows // 16, columns // width, 1 << bits)),
        "table_scales": ("uint16", (rows // 16, columns // width)),
        "row_scales": ("uint16", (rows,)),
    }
    index = unpack_indices(raw["indices"], bits).astype(np.int64)
    assert index.shape == weight_NK.shape
    group, table = np.arange(rows)[:, None] // 16, np.arange(columns)[None, :] // width
    table_scales = raw["table_scales"].view(np.float16).astype(np.float64)
    row_scales = raw["row_scales"].view(np.float16).astype(np.float64)
    return Palettes(
        raw,
        index,
        raw["tables"][group, table, index].astype(np.float64),
        table_scales[group, table] * row_scales[:, None],
    )


# --- the layout


@pytest.mark.parametrize("bits", BITS)
def test_indices_lie_as_the_kernels_read_them(bits: int) -> None:
    """Packing what was unpacked, by other code, gives the same bytes; all indices occur."""
    weight = np.random.default_rng(11).standard_normal((48, 320)).astype(np.float32)
    ours = palettize(weight, table_columns=64, bits=bits)
    assert set(np.unique(ours.index_NK)) == set(range(1 << bits))
    assert pack_indices(ours.index_NK, bits).tobytes() == ours.raw["indices"].tobytes()


@given(st.sampled_from(BITS), st.integers(1, 3), st.integers(1, 4), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_indices_come_back_from_their_bytes(bits: int, groups: int, blocks: int, seed: int) -> None:
    index = np.random.default_rng(seed).integers(0, 1 << bits, (16 * groups, 64 * blocks))
    packed = pack_indices(index, bits)
    assert 8 * packed.size == bits * index.size
    unpacked = unpack_indices(packed, bits)
    assert unpacked.dtype == np.uint8
    np.testing.assert_array_equal(unpacked, index)


# --- quality, against plain k-means


def lloyd(values: Doubles, weights: Doubles, centres: Doubles) -> Doubles:
    """Weighted one-dimensional k-means from given centres, until nothing moves any more."""
    centres = np.sort(centres)
    for _ in range(200):
        index = np.searchsorted((centres[1:] + centres[:-1]) / 2, values)
        colors = len(centres)
        mass = np.bincount(index, weights, colors)
        total = np.bincount(index, weights * values, colors)
        moved = np.sort(np.where(mass > 0, total / np.where(mass > 0, mass, 1), centres))
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres


def cost(values: Doubles, weights: Doubles, centres: Doubles) -> float:
    index = np.searchsorted((centres[1:] + centres[:-1]) / 2, values)
    return float((weights * (values - centres[index]) ** 2).sum())


def spread_start(rng: np.random.Generator, values: Doubles, weights: Doubles, colors: int) -> Doubles:
    """Some of the values, each drawn by its weighted distance to those before (k-means++)."""
    chosen = [values[rng.integers(len(values))]]
    distance = (values - chosen[0]) ** 2
    while len(chosen) < colors:
        chance = weights * distance
        chosen.append(rng.choice(values, p=chance / chance.sum()) if chance.sum() > 0 else chosen[-1])
        distance = np.minimum(distance, (values - chosen[-1]) ** 2)
    return np.array(chosen)


DATA = (
    "gaussian",
    "heavy-tailed",
    "bimodal",
    "one outlier",
    "uneven importance",
    "a small model's block format",
)


def sample(kind: str, rng: np.random.Generator, columns: int) -> tuple[Floats, Floats]:
    """A group of 16 rows of very different size, and an importance."""
    w = rng.standard_normal((16, columns))
    importance = np.exp(0.5 * rng.standard_normal(columns))
    if kind == "heavy-tailed":
        w = rng.standard_t(2.5, (16, columns))
    elif kind == "bimodal":
        w = rng.choice([-2.0, 1.5], (16, columns)) + 0.2 * w
    elif kind == "one outlier":
        w[rng.integers(16), rng.integers(columns)] = 30.0
    elif kind == "uneven importance":
        importance = np.exp(2.0 * rng.standard_normal(columns))
    elif kind == "a small model's block format":  # 4-bit values with a scale and a minimum per 32, as Q4_1
        blocks = w.reshape(-1, 32)
        low, high = blocks.min(axis=1, keepdims=True), blocks.max(axis=1, keepdims=True)
        w = (np.rint((blocks - low) / (high - low) * 15) / 15 * (high - low) + low).reshape(16, columns)
    w *= 10.0 ** rng.uniform(-2, 1, (16, 1))
    return w.astype(np.float32), importance.astype(np.float32)


def against_lloyd(kind: str, seed: int, columns: int, bits: int) -> tuple[float, float, float, float]:
    """Errors: ours; of the best of several k-means; of that as the format stores it; what storing may add."""
    rng = np.random.default_rng(seed)
    weight, importance = sample(kind, rng, columns)
    ours, colors = palettize(weight, importance, bits=bits), 1 << bits
    scales = ours.raw["row_scales"].view(np.float16).astype(np.float64)
    values = (weight.astype(np.float64) / scales[:, None]).reshape(-1)
    weights = (importance[None].astype(np.float64) * scales[:, None] ** 2).reshape(-1)
    middles = (np.arange(colors) + 0.5) / colors
    starts = [np.quantile(values, middles), np.linspace(values.min(), values.max(), colors)]
    starts += [spread_start(rng, values, weights, colors) for _ in range(3)]
    best = min((lloyd(values, weights, start) for start in starts), key=lambda c: cost(values, weights, c))
    step = float(np.float16(np.abs(best).max() / 127))
    stored = np.sort(np.clip(np.rint(best / step), -127, 127) * step)
    rounding = weights.sum() * (step / 2) ** 2
    return ours.raw["squared_error"], cost(values, weights, best), cost(values, weights, stored), rounding


@given(
    st.sampled_from(DATA),
    st.integers(0, 2**32 - 1),
    st.sampled_from([64, 128, 192, 576]),
    st.sampled_from(BITS),
)
@settings(max_examples=120, deadline=None)
def test_the_error_is_at_most_2_percent_above_the_best_of_several_k_means(
    kind: str, seed: int, columns: int, bits: int
) -> None:
    error, best, _, rounding = against_lloyd(kind, seed, columns, bits)
    assert error <= 1.02 * best + rounding  # an entry rounded by half a step costs at most this much


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", DATA)
def test_with_entries_stored_alike_it_is_no_worse_on_the_whole(kind: str, bits: int) -> None:
    """The rounding of entries is luck in one table, and evens out over many."""
    results = [against_lloyd(kind, seed, (64, 192)[seed % 2], bits) for seed in range(16)]
    norms = [best for _, best, _, _ in results]  # every table counts the same
    ours = sum(error / norm for (error, _, _, _), norm in zip(results, norms, strict=True))
    theirs = sum(stored / norm for (_, _, stored, _), norm in zip(results, norms, strict=True))
    assert ours <= 1.02 * theirs


@given(
    st.sampled_from([(1, 4), (9, 4), (16, 4), (16, 4), (5, 3), (8, 3), (2, 2), (4, 2)]),
    st.integers(0, 2**32 - 1),
    st.sampled_from([64, 128, 320]),
    st.sampled_from([0.3, 1.0, 5.0]),
)
@settings(max_examples=100, deadline=None)
def test_no_more_values_than_entries_are_reproduced_up_to_the_rounding_of_an_entry(
    count_bits: tuple[int, int], seed: int, columns: int, evenness: float
) -> None:
    """Every row holds the same values, some of them rare, in another order, and so has the same scale."""
    count, bits = count_bits
    rng = np.random.default_rng(seed)
    levels = rng.standard_normal(count) * rng.choice([1.0, 1.0, 1.0, 10.0], count)
    row = rng.choice(levels, columns, p=rng.dirichlet(np.full(count, evenness)))
    weight = np.stack([rng.permutation(row) for _ in range(16)]).astype(np.float32)
    ours = palettize(weight, rng.uniform(0.1, 1.0, columns).astype(np.float32), bits=bits)
    assert (np.abs(ours.weight - weight) <= 0.51 * ours.step_NK).all()


# --- importance


def test_a_column_that_matters_gets_a_smaller_error_and_the_rest_pays() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 192)).astype(np.float32)
    importance = np.ones(192, np.float32)
    important = rng.choice(192, 12, replace=False)
    importance[important] = 1000.0
    weight[:, important] *= 0.2  # to plain k-means, these look as if they hardly mattered
    plain, weighted = palettize(weight), palettize(weight, importance)

    def mean_error(palettes: Palettes, columns: NDArray[np.int64]) -> float:
        return float(((palettes.weight - weight)[:, columns] ** 2).mean())

    others = np.setdiff1d(np.arange(192), important)
    assert mean_error(weighted, important) < 0.5 * mean_error(plain, important)
    assert mean_error(weighted, others) > mean_error(plain, others)
    assert ((weighted.weight - weight) ** 2 @ importance).sum() < (
        (plain.weight - weight) ** 2 @ importance
    ).sum()


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**20])
def test_only_the_ratios_of_importance_matter(factor: float) -> None:
    rng = np.random.default_rng(1)
    weight, importance = (
        rng.standard_normal((16, 128)).astype(np.float32),
        rng.uniform(0.1, 2, 128).astype(np.float32),
    )
    one, other = palettize(weight, importance), palettize(weight, importance * np.float32(factor))
    assert one.bytes == other.bytes
    assert other.raw["squared_error"] == pytest.approx(one.raw["squared_error"] * factor, rel=1e-9)


# --- determinism and tables


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("table_columns", [64, 192, 384])
def test_the_same_bytes_for_any_number_of_threads(table_columns: int, bits: int) -> None:
    rng = np.random.default_rng(3)
    weight = rng.standard_t(3, (112, 384)).astype(np.float32)
    weight[5] = 0.0
    importance = rng.uniform(0.01, 3, 384).astype(np.float32)
    first = palettize(weight, importance, table_columns, bits=bits)
    for threads in (1, 2, 3, 7):
        again = palettize(weight, importance, table_columns, threads, bits)
        assert again.bytes == first.bytes
        assert again.raw["squared_error"] == first.raw["squared_error"]
        assert again.raw["squared_norm"] == first.raw["squared_norm"]


@pytest.mark.parametrize("bits", BITS)
def test_groups_of_rows_have_nothing_to_do_with_each_other(bits: int) -> None:
    rng = np.random.default_rng(4)
    weight = rng.standard_normal((48, 192)).astype(np.float32)
    whole = palettize(weight, table_columns=64, bits=bits)
    for g in range(3):
        alone = palettize(weight[16 * g : 16 * g + 16].copy(), table_columns=64, bits=bits)
        for name in ("indices", "tables", "table_scales"):
            np.testing.assert_array_equal(alone.raw[name][0], whole.raw[name][g])


def test_of_two_kinds_of_row_scales_the_better_is_taken_group_by_group() -> None:
    normal = np.random.default_rng(1).standard_normal((32, 640)).astype(np.float32)
    outliers = np.random.default_rng(2).standard_t(3, (32, 640)).astype(np.float32)
    weight = np.concatenate([normal, outliers])

    def squared_error(part: Floats, better: bool) -> float:
        ones = np.ones(part.shape[1], np.float32)
        return float(_native.palettize(part, ones, 4, part.shape[1], 1, better)["squared_error"])

    assert squared_error(outliers, True) < 0.97 * squared_error(outliers, False)
    assert squared_error(normal, True) <= squared_error(normal, False)
    parts = squared_error(normal, True) + squared_error(outliers, True)
    assert squared_error(weight, True) == pytest.approx(parts, rel=1e-9)


def test_finer_tables_fit_better() -> None:
    rng = np.random.default_rng(5)
    weight = (rng.standard_normal((32, 576)) * np.repeat(10.0 ** rng.uniform(-1, 1, 9), 64)).astype(
        np.float32
    )
    errors = [palettize(weight, table_columns=width).raw["squared_error"] for width in (576, 192, 64)]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize(("bits", "optimum"), [(4, 0.0095), (3, 0.0345), (2, 0.1175)])
def test_normal_values_lose_what_the_best_quantiser_of_a_normal_loses(bits: int, optimum: float) -> None:
    """The relative squared errors of Max (1960); tables fitted to few values are below them."""
    weight = np.random.default_rng(12).standard_normal((64, 1024)).astype(np.float32)
    raw = palettize(weight, bits=bits).raw
    assert 0.97 * optimum < raw["squared_error"] / raw["squared_norm"] < 1.03 * optimum


@pytest.mark.parametrize("bits", BITS)
def test_the_nearest_entry_is_taken(bits: int) -> None:
    rng = np.random.default_rng(6)
    weight = rng.standard_normal((16, 192)).astype(np.float32)
    ours = palettize(weight, table_columns=64, bits=bits)
    for table in range(3):
        columns = slice(64 * table, 64 * table + 64)
        entries = ours.raw["tables"][0, table].astype(np.float64)
        assert (np.diff(entries) >= 0).all()
        choices = entries[None, None, :] * ours.step_NK[:, columns, None]
        nearest = np.abs(weight[:, columns, None] - choices).min(axis=2)
        taken = np.abs(weight[:, columns] - ours.weight[:, columns])
        np.testing.assert_allclose(taken, nearest, rtol=0, atol=1e-6)


# --- the reported error


@given(
    st.integers(0, 2**32 - 1), st.sampled_from([1.0, 1e-3, 1e-9, 100.0]), st.booleans(), st.sampled_from(BITS)
)
@settings(max_examples=60, deadline=None)
def test_the_reported_error_is_the_error(seed: int, size: float, zeros: bool, bits: int) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((32, 128)) * size).astype(np.float32)
    if zeros:
        weight[rng.integers(0, 32, 9)] = 0.0
        weight[:, rng.integers(0, 128, 20)] = 0.0
    importance = np.exp(rng.standard_normal(128)).astype(np.float32)
    ours = palettize(weight, importance, 64, bits=bits)
    weigh = importance.astype(np.float64)
    exact = weight.astype(np.float64)
    assert ours.raw["squared_error"] == pytest.approx(
        float(((ours.weight - exact) ** 2 @ weigh).sum()), rel=1e-4, abs=0
    )
    assert ours.raw["squared_norm"] == pytest.approx(float((exact**2 @ weigh).sum()), rel=1e-9, abs=0)


# --- special matrices


@pytest.mark.parametrize("bits", BITS)
def test_rows_of_zeros_come_back_as_zeros(bits: int) -> None:
    rng = np.random.default_rng(7)
    weight = rng.standard_normal((32, 128)).astype(np.float32)
    weight[[0, 7, 31]] = 0.0
    ours = palettize(weight, table_columns=64, bits=bits)
    assert (ours.weight[[0, 7, 31]] == 0).all()
    assert (ours.raw["row_scales"][[0, 7, 31]] == 0).all()
    others = np.setdiff1d(np.arange(32), [0, 7, 31])
    assert np.sqrt(((ours.weight - weight)[others] ** 2).mean()) < {4: 0.1, 3: 0.2, 2: 0.36}[bits]


def test_a_matrix_of_zeros_is_zeros_without_error() -> None:
    ours = palettize(np.zeros((16, 192), np.float32), table_columns=64)
    assert (ours.weight == 0).all()
    assert (ours.raw["squared_error"], ours.raw["squared_norm"]) == (0.0, 0.0)


def test_columns_of_zeros_that_fill_a_table_are_zeros() -> None:
    weight = np.random.default_rng(8).standard_normal((16, 192)).astype(np.float32)
    weight[:, 64:128] = 0.0
    assert (palettize(weight, table_columns=64).weight[:, 64:128] == 0).all()


@pytest.mark.parametrize("value", [1.0, -0.37, 3e-4, 250.0])
def test_a_constant_matrix_is_reproduced_to_float16(value: float) -> None:
    weight = np.full((16, 128), value, np.float32)
    np.testing.assert_allclose(palettize(weight, table_columns=64).weight, weight, rtol=2.0**-10)


@pytest.mark.parametrize("size", [1e-6, 1e-4, 1.0, 1e3])
def test_rows_of_any_usual_size_keep_their_precision(size: float) -> None:
    weight = (np.random.default_rng(9).standard_normal((16, 192)) * size).astype(np.float32)
    ours = palettize(weight, table_columns=64)
    relative = np.sqrt(((ours.weight - weight) ** 2).sum() / (weight.astype(np.float64) ** 2).sum())
    assert relative < 0.1


# --- what is refused


WEIGHT = np.random.default_rng(10).standard_normal((32, 128)).astype(np.float32)
ONES = np.ones(128, np.float32)


def spoil(array: Floats, value: float) -> Floats:
    copy = array.copy()
    copy.reshape(-1)[-3] = value
    return copy


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        _native.palettize(spoil(WEIGHT, value), ONES, 4, 64, 1)
    with pytest.raises(ValueError, match="not finite"):
        _native.palettize(WEIGHT, spoil(ONES, value), 4, 64, 1)


def test_negative_importance_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        _native.palettize(WEIGHT, spoil(ONES, -1.0), 4, 64, 1)


def test_rows_too_large_for_a_float16_scale_are_refused() -> None:
    """Not turned into infinities."""
    with pytest.raises(ValueError, match="large"):
        _native.palettize(WEIGHT * np.float32(1e6), ONES, 4, 64, 1)


@pytest.mark.parametrize(
    ("weight", "importance", "table_columns"),
    [
        (WEIGHT[:24], ONES, 64),
        (WEIGHT[:0], ONES, 64),
        (WEIGHT[:, :0].copy(), ONES[:0], 64),
        (WEIGHT, ONES[:64], 64),
        (WEIGHT, ONES, 32),
        (WEIGHT, ONES, 0),
        (WEIGHT, ONES, -64),
        (WEIGHT, ONES, 192),
        (np.ascontiguousarray(WEIGHT[:, :96]), ONES[:96], 64),
        (np.ascontiguousarray(WEIGHT[:, :96]), ONES[:96], 96),
    ],
)
def test_shapes_that_do_not_fit_are_refused(weight: Floats, importance: Floats, table_columns: int) -> None:
    with pytest.raises(ValueError, match=r"palettize needs|table_columns must"):
        _native.palettize(weight, importance, 4, table_columns, 1)


@pytest.mark.parametrize("bits", [-4, 0, 1, 5, 8, 40])
def test_another_number_of_bits_is_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="bits must be 4, 3 or 2"):
        _native.palettize(WEIGHT, ONES, bits, 64, 1)


@pytest.mark.parametrize("weight", [WEIGHT[0], WEIGHT[None], "weights", None])
def test_what_is_no_matrix_is_refused(weight: Any) -> None:
    with pytest.raises(TypeError):
        _native.palettize(weight, ONES, 4, 64, 1)


@pytest.mark.parametrize("threads", [0, -3])
def test_a_senseless_number_of_threads_is_one_or_an_error(threads: int) -> None:
    try:
        result = _native.palettize(WEIGHT, ONES, 4, 64, threads)
    except ValueError:
        return
    assert result["indices"].tobytes() == palettize(WEIGHT, ONES, 64).raw["indices"].tobytes()
