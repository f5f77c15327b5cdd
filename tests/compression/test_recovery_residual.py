"""The adapter's start: the closed form against a decomposition in float64, and what it does to the KL."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from pomona.compression.training.network import LowRank, Projections
from pomona.compression.training.residual import _solve, leading_vectors

torch.set_num_threads(1)


def spread_matrix(size: int, generator: torch.Generator) -> torch.Tensor:
    """Positive definite, with eigenvalues over five decades, as activations have."""
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator)).Q
    return basis @ torch.diag(torch.logspace(2, -3, size)) @ basis.t()


def test_the_vectors_are_the_leading_eigenvectors() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = spread_matrix(96, generator)
    found = leading_vectors(lambda y: matrix @ y, 96, 8)
    exact = torch.linalg.eigh(matrix.double()).eigenvectors[:, -8:].float()
    assert torch.allclose(found.t() @ found, torch.eye(8), atol=1e-4)
    # The same subspace: all cosines of the angles between them are 1.
    assert float(torch.linalg.svdvals(found.t() @ exact).min()) > 0.999


@dataclass
class Problem:
    teacher: Projections
    student: Projections
    x: torch.Tensor
    low: LowRank


@pytest.fixture(params=[False, True], ids=["plain", "folded"])
def problem(request: pytest.FixtureRequest) -> Problem:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(64, 128, generator=generator)
    rough = weight + 0.1 * torch.randn(64, 128, generator=generator)
    fold = 0.5 + torch.rand(128, generator=generator) if request.param else None
    x = (torch.randn(1000, 128, generator=generator) @ spread_matrix(128, generator)).bfloat16()
    teacher, student = (Projections({"p": w}, fold_K=fold) for w in (weight, rough))
    low = LowRank(torch.zeros(8, 128), torch.zeros(64, 8), torch.zeros(8, 128), torch.zeros(64, 8), 2.0)
    student.adapt({"p": low})
    return Problem(teacher, student, x, low)


def output_error(problem: Problem) -> float:
    difference = problem.teacher.product(problem.x).double() - problem.student.product(problem.x).double()
    return float(difference.square().sum())


def test_the_start_is_the_best_that_the_rank_allows(problem: Problem) -> None:
    error = problem.teacher.base_NK.double() - problem.student.base_NK.double()
    outputs = problem.x.double() @ error.t()
    best = float(torch.linalg.svdvals(outputs)[8:].square().sum())
    before = output_error(problem)
    _solve(problem.teacher, problem.student, problem.x)
    problem.student.refresh()
    assert output_error(problem) == pytest.approx(best, rel=0.05)
    assert output_error(problem) < 0.3 * before


def test_both_factors_have_one_size() -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(64, 128, generator=generator)
    teacher, student = Projections({"p": weight}), Projections({"p": weight + 0.1})
    low = LowRank(torch.zeros(1, 128), torch.zeros(64, 1), torch.zeros(1, 128), torch.zeros(64, 1), 2.0)
    student.adapt({"p": low})
    _solve(teacher, student, torch.randn(300, 128, generator=generator).bfloat16())
    assert torch.allclose(low.a_RK.norm(dim=1), low.b_NR.norm(dim=0), rtol=1e-3)


def test_a_rank_larger_than_the_matrix_is_filled_with_zeros() -> None:
    found = leading_vectors(lambda y: 2 * y, 4, 6)
    assert found.shape == (4, 6)
    assert torch.equal(found[:, 4:], torch.zeros(4, 2))
