"""Compensated palettes against a short numpy reference of the algorithm, and what palettize() promises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pomona.compression import palettize as module
from pomona.compression.moments import InputMoments
from pomona.compression.palettize import Palettized, palettize
from pomona.errors import PomonaError
from pomona.models.palettized import GROUP_ROWS, unpack_indices, unpack_palette

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
BITS = (4, 3, 2)


def some_moments(columns: int, seed: int = 0, rows: int = 600) -> InputMoments:
    """Of inputs that have much in common and differ in size, as those of a trained model."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((columns, columns)) / np.sqrt(columns) + np.eye(columns)
    x = rng.standard_normal((rows, columns)) @ mixed * np.exp(rng.standard_normal(columns))
    full = (x.T @ x / rows).astype(np.float32)
    return InputMoments(rows, full.diagonal().astype(np.float64), full)


def some_weight(rows: int, columns: int, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def unpacked(result: Palettized) -> Doubles:
    parts = result.parts
    return unpack_palette(
        parts["indices"], parts["tables"], parts["table_scales"], parts["row_scales"]
    ).astype(np.float64)


def energies(matrix: Doubles, moments: InputMoments) -> Doubles:
    """tr(M H M^T) of every group of 16 rows."""
    assert moments.full is not None
    rows = ((matrix @ moments.full.astype(np.float64)) * matrix).sum(axis=1)
    return rows.reshape(-1, GROUP_ROWS).sum(axis=1)


# --- the reference: one group of 16 rows, in float64


@dataclass
class Reference:
    """Rounding column by column, then sweeps over indices, entries and row scales: compensate.h."""

    weight: Doubles  # [16, K]
    moment: Doubles  # [K, K], not damped
    keep: float
    added: Doubles
    entries: Doubles  # [tables, colors], as stored
    scales: Doubles  # [16], as stored

    def __post_init__(self) -> None:
        self.width = self.weight.shape[1] // len(self.entries)
        self.damped = self.keep * self.moment + np.diag(self.added)

    @property
    def values(self) -> Doubles:
        table = np.arange(self.weight.shape[1]) // self.width
        return self.entries[table[None], self.codes] * self.scales[:, None]

    def nearest(self, k: int, wanted: Doubles) -> None:
        with np.errstate(divide="ignore", invalid="ignore"):
            target = np.where(self.scales > 0, wanted / self.scales, 0.0)
        self.codes[:, k] = np.abs(target[:, None] - self.entries[k // self.width][None]).argmin(axis=1)

    def assign(self, order: NDArray[np.int32]) -> None:
        self.codes = np.zeros(self.weight.shape, np.int64)
        lower = np.linalg.cholesky(self.damped[np.ix_(order, order)])
        sums = np.zeros(self.weight.shape)
        for i in reversed(range(len(order))):
            k = order[i]
            self.nearest(k, self.weight[:, k] + sums[:, i] / lower[i, i])
            error = self.weight[:, k] - self.values[:, k]
            sums[:, :i] += error[:, None] * lower[i, :i][None]

    def sweep(self) -> None:
        for t in range(len(self.entries)):
            columns = range(t * self.width, (t + 1) * self.width)
            for k in columns:
                slope = (self.weight - self.values) @ self.damped[:, k]
                self.nearest(k, self.values[:, k] + slope / self.damped[k, k])
            self.fit_table(t, list(columns))
        for r in range(GROUP_ROWS):
            q, e = self.values[r], self.weight[r] - self.values[r]
            if self.scales[r] > 0:
                self.scales[r] = np.float16(
                    self.scales[r] * (1 + q @ self.damped @ e / (q @ self.damped @ q))
                )

    def fit_table(self, t: int, columns: list[int]) -> None:
        colors = self.entries.shape[1]
        matrix, right = np.zeros((colors, colors)), np.zeros(colors)
        for r in range(GROUP_ROWS):
            chosen = self.scales[r] * np.eye(colors)[self.codes[r, columns]]  # [C, colors]
            matrix += chosen.T @ self.damped[np.ix_(columns, columns)] @ chosen
            right += chosen.T @ (self.damped[columns] @ (self.weight[r] - self.values[r]))
        change = np.linalg.solve(matrix + 1e-6 * matrix.diagonal().max() * np.eye(colors), right)
        wanted = self.entries[t] + change
        step = float(np.float16(np.abs(wanted).max() / 127))
        stored = np.rint(wanted / step) * step
        change = stored - self.entries[t]
        if change @ (2 * right - matrix @ change) > 0:
            order = np.argsort(stored, kind="stable")
            self.codes[:, columns] = np.argsort(order)[self.codes[:, columns]]
            self.entries[t] = stored[order]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("sweeps", [0, 1, 3])
def test_the_solver_does_what_the_reference_does(
    bits: int, sweeps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ties and rounding in float32 turn single indices; all else is the same, and so is the error."""
    monkeypatch.setattr(module, "ROUNDS", 1)
    monkeypatch.setattr(module, "SWEEPS", sweeps)
    moments, weight = some_moments(128), some_weight(32, 128)
    ours = palettize(weight, moments, bits, 64, threads=1)
    factor = moments.factor(module.DAMPING, module.SHRINK, 1)
    remaining = np.empty(128)  # what later columns cannot make good
    remaining[factor.order] = factor.lower.diagonal().astype(np.float64) ** 2
    start = palettize(weight, InputMoments(1, remaining), bits, 64, method="weighted")
    assert moments.full is not None
    codes = unpack_indices(ours.parts["indices"], bits)
    error = energies(unpacked(ours) - weight, moments)
    for g in range(2):
        rows = slice(16 * g, 16 * g + 16)
        entries = start.parts["tables"][g] * start.parts["table_scales"][g].astype(np.float64)[:, None]
        reference = Reference(
            weight[rows].astype(np.float64),
            moments.full.astype(np.float64),
            factor.keep,
            factor.added.astype(np.float64),
            entries,
            start.parts["row_scales"][rows].astype(np.float64),
        )
        reference.assign(factor.order)
        for _ in range(sweeps):
            reference.sweep()
        theirs = energies(reference.weight - reference.values, moments)[0]
        assert error[g] == pytest.approx(theirs, rel=0.02 if sweeps else 0.005)
        assert (codes[rows] == reference.codes).mean() > (0.95 if sweeps else 0.99)


# --- what it promises


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(BITS),
    st.sampled_from([64, 192]),
    st.sampled_from([20, 200, 2000]),
)
@settings(max_examples=25, deadline=None)
def test_no_group_is_worse_than_weighted_k_means(seed: int, bits: int, width: int, rows: int) -> None:
    """Not even where the moments are those of few tokens."""
    moments, weight = some_moments(192, seed, rows), some_weight(48, 192, seed + 1)
    before = palettize(weight, moments, bits, width, method="weighted", threads=1)
    after = palettize(weight, moments, bits, width, threads=1)
    worse = energies(unpacked(after) - weight, moments) / energies(unpacked(before) - weight, moments)
    assert (worse <= 1.0001).all()
    assert worse.mean() < 0.8


@pytest.mark.parametrize("bits", BITS)
def test_each_method_is_better_than_the_one_before(bits: int) -> None:
    moments, weight = some_moments(192), some_weight(64, 192)
    methods = ("kmeans", "weighted", "compensated")
    errors = [palettize(weight, moments, bits, 64, method=m).relative_error for m in methods]
    assert errors[0] > errors[1] > errors[2]


def test_it_is_better_on_tokens_that_it_has_not_seen() -> None:
    """Half of the tokens are fitted to, the others judge."""
    rng = np.random.default_rng(5)
    mixed = rng.standard_normal((192, 192)) / 14 + np.eye(192)
    x = rng.standard_normal((3000, 192)) @ mixed * np.exp(rng.standard_normal(192))
    fitted, other = (
        InputMoments(1500, h.diagonal().astype(np.float64), h)
        for h in ((part.T @ part / 1500).astype(np.float32) for part in (x[:1500], x[1500:]))
    )
    weight = some_weight(64, 192)
    before, after = (
        energies(unpacked(palettize(weight, fitted, 3, 64, method=m)) - weight, other).sum()
        for m in ("weighted", "compensated")
    )
    assert after < 0.7 * before


@pytest.mark.parametrize("method", ["kmeans", "weighted", "compensated"])
@pytest.mark.parametrize("full", [True, False])
def test_the_relative_error_is_that_of_what_is_stored(method: Any, full: bool) -> None:
    moments, weight = some_moments(192), some_weight(32, 192)
    if not full:
        if method == "compensated":
            pytest.skip("needs full moments")
        moments = InputMoments(moments.rows, moments.diagonal)
    result = palettize(weight, moments, 3, 64, method=method)
    h = moments.full if moments.full is not None else np.diag(moments.diagonal).astype(np.float32)
    exact = InputMoments(1, moments.diagonal, h)
    error = (
        energies(unpacked(result) - weight, exact).sum() / energies(weight.astype(np.float64), exact).sum()
    )
    assert result.relative_error == pytest.approx(np.sqrt(error), rel=1e-3)


@pytest.mark.parametrize("bits", BITS)
def test_the_same_bytes_for_any_number_of_threads(bits: int) -> None:
    weight = some_weight(176, 192)
    first = palettize(weight, some_moments(192), bits, 64, threads=1)
    for threads in (2, 3, 8):
        again = palettize(weight, some_moments(192), bits, 64, threads=threads)
        assert again.relative_error == first.relative_error
        for name, part in first.parts.items():
            np.testing.assert_array_equal(again.parts[name], part)


def test_parts_have_the_shapes_of_the_format() -> None:
    parts = palettize(some_weight(32, 192), some_moments(192), 4, 64).parts
    assert {name: (part.dtype.name, part.shape) for name, part in parts.items()} == {
        "indices": ("uint8", (2, 24, 64)),
        "tables": ("int8", (2, 3, 16)),
        "table_scales": ("float16", (2, 3)),
        "row_scales": ("float16", (32,)),
    }
    assert (np.diff(parts["tables"].astype(int), axis=2) >= 0).all()


def test_inputs_without_anything_in_common_leave_nothing_to_compensate() -> None:
    """With a diagonal moment, a column's error is nobody else's business: the k-means stays near."""
    diagonal = np.exp(np.random.default_rng(3).standard_normal(128))
    moments = InputMoments(9, diagonal, np.diag(diagonal).astype(np.float32))
    weight = some_weight(32, 128)
    before, after = (palettize(weight, moments, 4, 64, method=m) for m in ("weighted", "compensated"))
    assert 0.97 * before.relative_error < after.relative_error <= before.relative_error


# --- unusual matrices and moments


def test_moments_of_one_token_are_no_trouble() -> None:
    x = np.random.default_rng(4).standard_normal(64)
    full = np.outer(x, x).astype(np.float32)
    result = palettize(some_weight(16, 64), InputMoments(1, full.diagonal().astype(np.float64), full), 4, 64)
    assert result.relative_error < 0.05


def test_an_input_that_is_always_zero_gives_plain_palettes() -> None:
    moments = InputMoments(5, np.zeros(64), np.zeros((64, 64), np.float32))
    result = palettize(some_weight(16, 64), moments, 4, 64)
    assert result.relative_error == 0.0
    assert np.abs(unpacked(result) - some_weight(16, 64)).max() < 0.6


def test_a_matrix_of_zeros_is_zeros() -> None:
    result = palettize(np.zeros((16, 64), np.float32), some_moments(64), 4, 64)
    assert result.relative_error == 0.0
    assert (unpacked(result) == 0).all()


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_the_size_of_the_inputs_does_not_matter(size: float) -> None:
    moments = some_moments(128)
    assert moments.full is not None
    scaled = InputMoments(9, moments.diagonal * size, moments.full * np.float32(size))
    first, second = (palettize(some_weight(32, 128), m, 3, 64) for m in (moments, scaled))
    assert second.relative_error == pytest.approx(first.relative_error, rel=0.01)


# --- what is refused


WEIGHT, MOMENTS = some_weight(32, 128), some_moments(128)


@pytest.mark.parametrize("method", ["weighted", "compensated"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_and_moments_that_are_not_finite_are_refused(method: Any, value: float) -> None:
    assert MOMENTS.full is not None
    weight, full, diagonal = WEIGHT.copy(), MOMENTS.full.copy(), MOMENTS.diagonal.copy()
    weight[3, 5] = full[7, 8] = full[8, 7] = diagonal[9] = value
    with pytest.raises(PomonaError, match="not finite"):
        palettize(weight, MOMENTS, 4, 64, method=method)
    with pytest.raises(PomonaError, match="not finite"):
        palettize(WEIGHT, InputMoments(9, diagonal, MOMENTS.full), 4, 64, method=method)
    if method == "compensated":
        with pytest.raises(PomonaError, match="not finite"):
            palettize(WEIGHT, InputMoments(9, MOMENTS.diagonal, full), 4, 64)


def test_a_moment_that_is_none_is_refused() -> None:
    """No mean of x x^T has a negative direction like this."""
    full = -np.eye(128, dtype=np.float32)
    with pytest.raises(PomonaError, match="moments that no inputs have"):
        palettize(WEIGHT, InputMoments(9, np.ones(128), full), 4, 64)


@pytest.mark.parametrize(
    ("moments", "method", "words"),
    [
        (None, "weighted", "needs the moments"),
        (None, "compensated", "needs the moments"),
        (InputMoments(9, MOMENTS.diagonal), "compensated", "needs full moments"),
        (some_moments(64), "compensated", "moments of 64 columns for a matrix of 128"),
        (InputMoments(9, -MOMENTS.diagonal), "weighted", "negative"),
        (MOMENTS, "best", "must be kmeans, weighted or compensated"),
    ],
)
def test_moments_that_do_not_do_are_refused(moments: Any, method: Any, words: str) -> None:
    with pytest.raises(PomonaError, match=words):
        palettize(WEIGHT, moments, 4, 64, method=method)


@pytest.mark.parametrize(
    ("rows", "bits", "width", "words"),
    [(24, 4, 64, "multiple of 16 rows"), (32, 5, 64, "bits must be"), (32, 4, 96, "table_columns must")],
)
def test_sizes_that_do_not_fit_are_refused(rows: int, bits: int, width: int, words: str) -> None:
    with pytest.raises(PomonaError, match=words):
        palettize(np.ascontiguousarray(WEIGHT[:rows]), MOMENTS, bits, width)
