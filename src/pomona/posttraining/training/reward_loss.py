"""The losses of the reward model (AFM report, section 4.4), as functions of tensors.

Shape letters: B rows, G gradings (4), C grades (3).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

# In the order of preferences.LEVELS: significantly better, better, slightly better, negligibly better.
SOFT_TARGETS = (0.95, 0.85, 0.75, 0.65)
MARGINS = (1.0, 2 / 3, 1 / 3, 0.0)  # of Llama 2 (2023), table 27, the small ones
NO_GRADE = -100

Labels = Literal["soft", "hard", "margin"]


def ranking_loss(chosen_B: Tensor, rejected_B: Tensor, level_B: Tensor, labels: Labels = "soft") -> Tensor:
    """[B]: -p log sigma(r_c - r_r) - (1 - p) log sigma(r_r - r_c), p by the level.

    Its minimum is at the finite gap r_c - r_r = logit(p). hard: p = 1, Bradley-Terry. margin: -log
    sigma(r_c - r_r - m), m by the level.
    """
    gap_B = chosen_B - rejected_B
    if labels == "margin":
        return -logsigmoid(gap_B - gap_B.new_tensor(MARGINS)[level_B])
    p_B = torch.ones_like(gap_B) if labels == "hard" else gap_B.new_tensor(SOFT_TARGETS)[level_B]
    return -p_B * logsigmoid(gap_B) - (1 - p_B) * logsigmoid(-gap_B)


def grading_loss(logits_BGC: Tensor, grades_BG: Tensor) -> Tensor:
    """[B]: the sum over the gradings of the cross-entropy; NO_GRADE where a question was not asked."""
    loss_BG = cross_entropy(
        logits_BGC.flatten(0, 1), grades_BG.flatten(), ignore_index=NO_GRADE, reduction="none"
    )
    return loss_BG.view(grades_BG.shape).sum(-1)


def reward_loss(
    rewards: tuple[Tensor, Tensor],
    logits: tuple[Tensor, Tensor],
    level_B: Tensor,
    grades: tuple[Tensor, Tensor],
    *,
    labels: Labels,
    grading_weight: float,
) -> Tensor:
    """[B]: L_rank + lambda L_regu. Each pair: of the chosen and of the rejected responses.

    level -1: a grading without a preference; its row has no ranking loss, and its second response is none.
    """
    ranks_B = level_B >= 0
    rank_B = ranking_loss(*rewards, level_B.clamp(min=0), labels)
    graded_B = grading_loss(logits[0], grades[0]) + grading_loss(logits[1], grades[1])
    return torch.where(ranks_B, rank_B, 0.0) + grading_weight * graded_B
