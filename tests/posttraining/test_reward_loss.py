"""The reward model's losses against hand derivations in float64 and finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from pomona.posttraining.preferences import LEVELS
from pomona.posttraining.training.reward_loss import (
    MARGINS,
    NO_GRADE,
    SOFT_TARGETS,
    grading_loss,
    ranking_loss,
    reward_loss,
)

F64 = torch.float64


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize("gap", [-3.0, 0.0, 0.7, 5.0])
def test_the_ranking_loss_is_the_reports_formula(level: int, gap: float) -> None:
    chosen = torch.tensor([1.5 + gap], dtype=F64, requires_grad=True)
    rejected = torch.tensor([1.5], dtype=F64, requires_grad=True)
    of = torch.tensor([level])
    p = SOFT_TARGETS[level]
    wanted = {
        "soft": -p * math.log(sigma(gap)) - (1 - p) * math.log(sigma(-gap)),
        "hard": -math.log(sigma(gap)),
        "margin": -math.log(sigma(gap - MARGINS[level])),
    }
    slope = {
        "soft": sigma(gap) - p,  # d/dgap, by hand
        "hard": sigma(gap) - 1,
        "margin": sigma(gap - MARGINS[level]) - 1,
    }
    for labels, value in wanted.items():
        loss = ranking_loss(chosen, rejected, of, labels)  # type: ignore[arg-type]
        assert loss.item() == pytest.approx(value, abs=1e-12)
        by_chosen, by_rejected = torch.autograd.grad(loss.sum(), (chosen, rejected))
        assert float(by_chosen) == pytest.approx(slope[labels], abs=1e-12)
        assert float(by_rejected) == pytest.approx(-slope[labels], abs=1e-12)


def test_the_best_gap_is_finite_and_is_the_logit_of_the_target() -> None:
    level = torch.arange(4)
    gap = torch.tensor([math.log(p / (1 - p)) for p in SOFT_TARGETS], dtype=F64, requires_grad=True)
    assert [round(value, 2) for value in gap.tolist()] == [2.94, 1.73, 1.10, 0.62]
    [slope] = torch.autograd.grad(ranking_loss(gap, torch.zeros(4, dtype=F64), level).sum(), gap)
    assert slope.abs().max() < 1e-12
    assert len(LEVELS) == len(SOFT_TARGETS) == len(MARGINS)


def test_gradings_are_optional_question_by_question() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 3, dtype=F64)
    grades = torch.tensor([[0, NO_GRADE, 2, NO_GRADE], [NO_GRADE] * 4])
    loss = grading_loss(logits, grades)
    logs = logits.log_softmax(-1)
    assert float(loss[0]) == pytest.approx(float(-logs[0, 0, 0] - logs[0, 2, 2]), abs=1e-12)
    assert float(loss[1]) == 0.0


@pytest.mark.parametrize("labels", ["soft", "hard", "margin"])
def test_the_gradient_of_the_whole_loss_agrees_with_finite_differences(labels: str) -> None:
    torch.manual_seed(1)
    rewards = torch.randn(2, 5, dtype=F64, requires_grad=True)
    logits = torch.randn(2, 5, 4, 3, dtype=F64, requires_grad=True)
    level = torch.tensor([0, 1, 2, 3, -1])
    grades = torch.randint(0, 3, (2, 5, 4))
    grades[0, 1] = NO_GRADE
    grades[1, 4] = NO_GRADE

    def loss(r: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return reward_loss(
            (r[0], r[1]),
            (u[0], u[1]),
            level,
            (grades[0], grades[1]),
            labels=labels,
            grading_weight=0.3,  # type: ignore[arg-type]
        ).mean()

    assert torch.autograd.gradcheck(loss, (rewards, logits), eps=1e-6, atol=1e-8)


def test_a_grading_without_a_preference_moves_no_reward() -> None:
    rewards = torch.randn(2, 1, dtype=F64, requires_grad=True)
    logits = torch.zeros(2, 1, 4, 3, dtype=F64)
    grades = torch.tensor([[[1, 1, 1, 1]], [[NO_GRADE] * 4]])
    loss = reward_loss(
        (rewards[0], rewards[1]),
        (logits[0], logits[1]),
        torch.tensor([-1]),
        (grades[0], grades[1]),
        labels="soft",
        grading_weight=0.5,
    )
    assert float(loss) == pytest.approx(0.5 * 4 * math.log(3), abs=1e-12)
    [by_reward] = torch.autograd.grad(loss.sum(), rewards)
    assert float(by_reward.abs().max()) == 0.0
