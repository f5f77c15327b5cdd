"""Distillation: the full-vocabulary forward KL from the teacher to the student, and its gradient.

    KL = sum over the vocabulary of  p_teacher (log p_teacher - log p_student)
    d KL / d logits = p_student - p_teacher

Logits of a few hundred tokens exist at a time: the products go in blocks, the sums over the vocabulary in
smaller ones that stay in the processor's cache, and the gradient takes the place of the logits.

Shape letters: T tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_TOKENS = 512  # of one product with the head
CACHED_TOKENS = 32  # whose logits fit the cache in float32


@dataclass(frozen=True)
class Head:
    """The two output matrices, each with the scale of its model's last norm folded in."""

    student_VD: Tensor
    teacher_VD: Tensor


@dataclass
class Agreement:
    """Sums over tokens."""

    tokens: int = 0
    kl: float = 0.0
    same_top: int = 0

    def add(self, other: Agreement) -> None:
        self.tokens += other.tokens
        self.kl += other.kl
        self.same_top += other.same_top

    @property
    def mean_kl(self) -> float:
        """Nats per token."""
        return self.kl / max(self.tokens, 1)

    @property
    def same_top_rate(self) -> float:
        return self.same_top / max(self.tokens, 1)


def kl_gradient(student_TD: Tensor, teacher_TD: Tensor, head: Head) -> tuple[float, Tensor]:
    """(sum of the KL over all tokens, its gradient [T, D] with respect to the student's states)."""
    total, grads = 0.0, torch.empty_like(student_TD)
    for start in range(0, len(student_TD), BLOCK_TOKENS):
        block = slice(start, start + BLOCK_TOKENS)
        logits, wanted = (
            torch.mm(student_TD[block], head.student_VD.t()),
            torch.mm(teacher_TD[block], head.teacher_VD.t()),
        )
        for low in range(0, len(logits), CACHED_TOKENS):
            part = slice(low, low + CACHED_TOKENS)
            log_s = logits[part].float().log_softmax(-1)
            log_t = wanted[part].float().log_softmax(-1)
            p_t = log_t.exp()
            total += float(log_t.sub_(log_s).mul_(p_t).sum())
            logits[part].copy_(log_s.exp_().sub_(p_t))
        torch.mm(logits, head.student_VD, out=grads[block])
    return total, grads


def agreement(student_TD: Tensor, teacher_TD: Tensor, head: Head) -> Agreement:
    """KL and same-top-token rate, in float32 from the same bfloat16 products."""
    found = Agreement(tokens=len(student_TD))
    for start in range(0, len(student_TD), CACHED_TOKENS * 4):
        part = slice(start, start + CACHED_TOKENS * 4)
        log_s = torch.mm(student_TD[part], head.student_VD.t()).float().log_softmax(-1)
        log_t = torch.mm(teacher_TD[part], head.teacher_VD.t()).float().log_softmax(-1)
        found.same_top += int((log_s.argmax(-1) == log_t.argmax(-1)).sum())
        found.kl += float(log_t.exp().mul_(log_t.sub_(log_s)).sum())
    return found
