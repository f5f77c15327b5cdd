"""The loss of a pre-training step: next-token cross-entropy plus z-loss.

z-loss (Chowdhery et al. 2022; AXLearn's honeycrisp has 1e-6, the AFM report is silent): the mean square of
log Z, the logarithm of the softmax's normaliser, keeps the logits from drifting.

A stage may bring another loss (pruning and distillation do): anything that is called as `loss(model, batch)`.
If it is a torch module its parameters are trained, and checkpointed, beside the model's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Batch:
    """Windows of a step. ids_BS: what is read; labels_BS: the next token of each; index_B: the number of each
    window in its stage, by which a loss may look up what it has kept about it."""

    ids_BS: torch.Tensor
    labels_BS: torch.Tensor
    index_B: torch.Tensor


@dataclass(frozen=True)
class Loss:
    """total: what is minimised, a mean over tokens. next_token: the cross-entropy that the curve shows.
    parts: further scalars for the log."""

    total: torch.Tensor
    next_token: torch.Tensor
    parts: dict[str, torch.Tensor] = field(default_factory=dict)


LossFunction = Callable[[torch.nn.Module, Batch], Loss]


class NextTokenLoss:
    """Cross-entropy of the next token plus `z_weight` times the mean square of log Z."""

    def __init__(self, z_weight: float = 1e-6) -> None:
        self.z_weight = z_weight

    def __call__(self, model: torch.nn.Module, batch: Batch) -> Loss:
        logits_BSV = model(input_ids=batch.ids_BS, use_cache=False).logits
        cross, z = cross_entropy(logits_BSV, batch.labels_BS)
        return Loss(cross + self.z_weight * z, cross, {"z": z})


def cross_entropy(logits_BSV: torch.Tensor, labels_BS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy in nats and mean square of log Z, both float32 scalars over all positions."""
    logits_NV = logits_BSV.float().flatten(0, -2)
    log_z_N = torch.logsumexp(logits_NV, dim=-1)
    wanted_N = logits_NV.gather(-1, labels_BS.reshape(-1, 1)).squeeze(-1)
    return (log_z_N - wanted_N).mean(), log_z_N.square().mean()
