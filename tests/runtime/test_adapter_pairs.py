"""An adapter's factors in another rank: the same product, or the nearest one."""

from __future__ import annotations

import numpy as np
import pytest

from pomona.runtime.adapter_pairs import with_rank
from pomona.runtime.adapter_writer import Pair


def a_pair(rows: int, columns: int, rank: int) -> Pair:
    rng = np.random.default_rng(rank)
    a = rng.standard_normal((rank, columns)).astype(np.float32)
    return a, rng.standard_normal((rows, rank)).astype(np.float32)


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_a_lower_rank_is_the_nearest_product(rank: int) -> None:
    a, b = a_pair(24, 40, 8)
    less_a, less_b = with_rank((a, b), rank, np.random.default_rng(0))
    assert less_a.shape == (rank, 40) and less_b.shape == (24, rank)
    assert less_a.dtype == less_b.dtype == np.float32
    u, s, v = np.linalg.svd((b @ a).astype(np.float64), full_matrices=False)
    nearest = (u[:, :rank] * s[:rank]) @ v[:rank]
    assert np.allclose(less_b @ less_a, nearest, atol=1e-4)
    # Both factors have one size, as training likes it.
    assert np.allclose(np.linalg.norm(less_a, axis=1), np.linalg.norm(less_b, axis=0), rtol=1e-4)


def test_the_same_rank_is_the_same() -> None:
    a, b = a_pair(16, 32, 4)
    same_a, same_b = with_rank((a, b), 4, np.random.default_rng(0))
    assert np.array_equal(same_a, a) and np.array_equal(same_b, b)


def test_what_a_higher_rank_adds_does_nothing_yet_and_can_learn() -> None:
    a, b = a_pair(16, 32, 4)
    more_a, more_b = with_rank((a, b), 6, np.random.default_rng(0))
    assert np.allclose(more_b @ more_a, b @ a, atol=1e-5)
    assert not more_b[:, 4:].any() and more_a[4:].any(axis=1).all()
