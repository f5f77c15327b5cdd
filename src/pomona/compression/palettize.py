"""Palettes for one matrix: plain, weighted by the inputs' squares, or error-compensated (AFM report 6.2).

    kmeans       every weight counts the same
    weighted     a weight counts as the mean square of its input: exact one-dimensional k-means per table
    compensated  from there: rounding column by column, each error made good by the columns that follow, as
                 the full second moment of the inputs has it; then indices one by one, table entries and row
                 scales by least squares, in turns. Never worse than `weighted`, group by group of 16 rows.

The solvers are native (native/compression). Shape letters: N rows (outputs), K columns (inputs).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pomona import _native
from pomona.compression.moments import InputMoments
from pomona.errors import PomonaError
from pomona.models.palettized import unpack_palette

Method = Literal["kmeans", "weighted", "compensated"]

DAMPING = 0.01  # of the mean diagonal, added to it
SHRINK = 0.1  # part of the moment that its diagonal takes the place of
ROUNDS = 1
SWEEPS = 2


@dataclass(frozen=True, eq=False)
class Palettized:
    """parts: indices, tables, table_scales, row_scales, as models/palettized.py has them."""

    parts: dict[str, NDArray[Any]]
    _energies: Callable[[], tuple[float, float]] = field(repr=False)  # of the error and of the weights

    @cached_property
    def relative_error(self) -> float:
        """sqrt(tr((W - Q) H (W - Q)^T) / tr(W H W^T)) with the full second moment H where there is one, else
        its diagonal, else the identity; 0 for a matrix of zeros. Measured when it is first asked for, unless
        the solver knows it: that can take as long as k-means does."""
        error, norm = self._energies()
        return math.sqrt(max(error, 0.0) / norm) if norm > 0 else 0.0


def palettize(
    weight_NK: NDArray[np.float32],
    moments: InputMoments | None,
    bits: int,
    table_columns: int,
    *,
    method: Method = "compensated",
    threads: int | None = None,
) -> Palettized:
    """bits: 4, 3 or 2. table_columns: a multiple of 64 that divides K. N is a multiple of 16.

    weighted needs moments, compensated full ones. The same bytes for any number of threads. Raises
    PomonaError for sizes that do not fit and for weights or moments that are not finite.
    """
    threads = threads or len(os.sched_getaffinity(0))
    if moments is not None:
        _check(moments, weight_NK)
    uniform = np.ones(weight_NK.shape[1], np.float32)
    # A table of whole rows serves all that lies along them; there it pays to try two kinds of row scales.
    better = table_columns == weight_NK.shape[1]
    try:
        if method == "kmeans":
            raw = _native.palettize(weight_NK, uniform, bits, table_columns, threads, better)
        elif moments is None:
            raise PomonaError(f"method {method!r} needs the moments of the inputs; collect them first")
        elif method == "weighted":
            raw = _native.palettize(weight_NK, moments.importance(), bits, table_columns, threads, better)
        elif method == "compensated":
            raw = _compensate(weight_NK, moments, bits, table_columns, threads)
        else:
            raise PomonaError(f"method {method!r}: must be kmeans, weighted or compensated")
    except ValueError as refusal:
        raise PomonaError(str(refusal)) from refusal
    error, norm = raw.pop("squared_error"), raw.pop("squared_norm")
    parts: dict[str, NDArray[Any]] = raw
    for name in ("table_scales", "row_scales"):
        parts[name] = parts[name].view(np.float16)
    # What the solver minimised is the error that is asked for, but for k-means under moments that it does not
    # look at, or only at their diagonal.
    if moments is None or method == "compensated" or (method == "weighted" and moments.full is None):
        return Palettized(parts, lambda: (error, norm))
    return Palettized(parts, lambda: _measured(weight_NK, parts, moments))


def _compensate(
    weight_NK: NDArray[np.float32], moments: InputMoments, bits: int, table_columns: int, threads: int
) -> dict[str, Any]:
    factor = moments.factor(DAMPING, SHRINK, threads)
    assert moments.full is not None  # else there is no factor
    return _native.compensate(
        weight_NK,
        moments.importance(),
        moments.full,
        factor.keep,
        factor.added,
        factor.lower,
        factor.order,
        bits,
        table_columns,
        ROUNDS,
        SWEEPS,
        True,
        threads,
    )


def _check(moments: InputMoments, weight_NK: NDArray[np.float32]) -> None:
    columns = weight_NK.shape[1]
    if moments.columns != columns or (moments.full is not None and moments.full.shape != (columns, columns)):
        raise PomonaError(f"moments of {moments.columns} columns for a matrix of {columns}")
    if not np.isfinite(moments.diagonal).all() or (moments.diagonal < 0).any():
        raise PomonaError("moments that are negative or not finite; the calibration is damaged")


def _measured(
    weight_NK: NDArray[np.float32], parts: dict[str, NDArray[Any]], moments: InputMoments
) -> tuple[float, float]:
    unpacked = unpack_palette(parts["indices"], parts["tables"], parts["table_scales"], parts["row_scales"])
    return _energy(unpacked - weight_NK, moments), _energy(weight_NK, moments)


def _energy(matrix_NK: NDArray[np.float32], moments: InputMoments) -> float:
    """tr(M H M^T)"""
    if moments.full is None:
        return float(((matrix_NK.astype(np.float64) ** 2) @ moments.diagonal).sum())
    return float(np.einsum("nk,nk->", matrix_NK @ moments.full, matrix_NK, dtype=np.float64))
