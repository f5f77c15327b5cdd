"""Where an adapter starts: the best low-rank answer to what compression changed, before any training.

With E = W (16 bits) - W (palettised) and the inputs' second moment H, the B A of rank r that minimises
tr((E - B A) H (E - B A)^T) is U U^T E, where U holds the r leading eigenvectors of E H E^T (QERA and LQER use
the same minimum). They are found by subspace iteration, so no large matrix is decomposed. H comes from the
teacher's own pass over a few windows, one group of projections at a time.

Shape letters: T tokens, N outputs, K inputs, R rank.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from pomona.compression.training.network import Network, Projections

TOKENS = 8192  # of which H is the mean
SPARE = 8  # columns beside the rank that speed up the iteration
ROUNDS = 6


def residual_start(teacher: Network, student: Network, ids_BS: Tensor) -> None:
    """Sets the student's adapters. The caller refreshes its weights."""
    pairs = list(zip(teacher.projections(), student.projections(), strict=True))
    try:
        for source, target in pairs:
            source.observer = partial(_solve, source, target)
        teacher.forward(ids_BS)
    finally:
        for source, _ in pairs:
            source.observer = None


def _solve(teacher: Projections, student: Projections, x_TK: Tensor) -> None:
    moment_KK = torch.mm(x_TK.t(), x_TK).float().div_(len(x_TK))
    for number, (name, low) in enumerate(student.adapters.items()):
        rows = student.rows[name]
        error_NK = teacher.base_NK[rows].float() - student.base_NK[rows].float()
        product = partial(_moment_product, error_NK, moment_KK)
        basis_NR = leading_vectors(product, len(error_NK), len(low.a_RK), seed=number)
        a_RK = basis_NR.t() @ error_NK
        if student.fold_K is not None:  # the base's columns hold the norm's scale, the adapter's do not
            a_RK = torch.where(student.fold_K != 0, a_RK / student.fold_K, 0.0)
        # B A is shared out so that both have rows and columns of one size, as training likes it.
        size_R1 = a_RK.norm(dim=1, keepdim=True).div_(low.scale).sqrt_().clamp_(min=1e-8)
        low.a_RK.copy_(a_RK / (low.scale * size_R1))
        low.b_NR.copy_(basis_NR * size_R1.t())


def _moment_product(error_NK: Tensor, moment_KK: Tensor, y_NR: Tensor) -> Tensor:
    """E H E^T y"""
    return error_NK @ (moment_KK @ (error_NK.t() @ y_NR))


def leading_vectors(product: Callable[[Tensor], Tensor], size: int, count: int, *, seed: int = 0) -> Tensor:
    """[size, count]: orthonormal, the eigenvectors with the largest eigenvalues of a symmetric matrix that is
    positive semi-definite and given by its product with a block of vectors. Fewer than `size` are wanted."""
    generator = torch.Generator().manual_seed(seed)
    block = torch.randn(size, min(count + SPARE, size), generator=generator)
    for _ in range(ROUNDS):
        block = torch.linalg.qr(block).Q
        block = product(block)
    basis = torch.linalg.qr(block).Q
    vectors = torch.linalg.eigh(basis.t() @ product(basis)).eigenvectors  # smallest first
    leading = basis @ vectors[:, -count:].flip(1)
    if leading.shape[1] < count:
        return torch.cat([leading, leading.new_zeros(size, count - leading.shape[1])], 1)
    return leading
