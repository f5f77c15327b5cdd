"""Masks on the FFN's channels, learned beside the weights by the loss of the text (AFM report, section 3.4).

As in Wang et al. 2020 and Sheared-LLaMA (Xia et al. 2023) the masks are trained together with the model, with
the report's changes: the FFN width alone is pruned, and the masks are Soft-Top-K instead of hard concrete, so
that the width is met exactly at every step and no penalty has to hold it.

The mask multiplies what goes into down_proj. During the stage its budget falls from the whole width to what
is kept, and its temperature falls until it is all but hard (pruning.py). An evaluation takes the hard mask:
the held-out losses of the curve are those of the model that would be cut out there.

The scores are the loss's one parameter, so they are trained, sharded and checkpointed as those of any loss.

Shape letters: L layers, N channels, B windows, S tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pomona.models.config import ModelConfig
from pomona.pretraining.pruning import budget, kept_channels, temperature
from pomona.pretraining.recipe import PruneSettings, StageSettings
from pomona.pretraining.training.loss import Batch, Loss, NextTokenLoss
from pomona.pretraining.training.model import whole
from pomona.pretraining.training.soft_top_k import soft_top_k


class PruningLoss(torch.nn.Module):  # type: ignore[misc]
    """Next-token loss of the masked model. Its parameter `scores` [L, N] begins at 0, without a favourite.

    A score is told in the distance that the optimizer can move one in the whole stage at the most (its
    updates have a root mean square of 1), so that temperatures mean the same at any rate and length.
    """

    def __init__(
        self, config: ModelConfig, stage: StageSettings, settings: PruneSettings, z_weight: float = 1e-6
    ) -> None:
        super().__init__()
        self.scores = torch.nn.Parameter(torch.zeros(config.num_hidden_layers, config.intermediate_size))
        self.width, self.stage, self.settings = config.intermediate_size, stage, settings
        self.gain = 1.0 / (stage.peak_lr * stage.steps)
        self.plain = NextTokenLoss(z_weight)
        self._attached = False
        self._soft_LN = torch.ones(0)
        self._hard_LN: torch.Tensor | None = None

    def forward(self, model: torch.nn.Module, batch: Batch) -> Loss:
        """The loss under the masks of the batch's step, which the windows' numbers tell."""
        self._attach(model)
        step = int(batch.index_B[0]) // self.stage.batch
        self._soft_LN, self._hard_LN = self.masks(step), None
        found = self.plain(model, batch)
        return Loss(found.total, found.next_token, found.parts | {"decided": self._decided()})

    def masks(self, step: int) -> torch.Tensor:
        """The soft masks [L, N] of a step (from 0)."""
        share = step / self.stage.steps
        k = budget(self.settings, self.width, share)
        return soft_top_k(self.gain * self.scores, k, temperature(self.settings, share))

    def hard_masks(self) -> torch.Tensor:
        """1 for the channels that would be kept now, 0 for the others [L, N]. All processes must call it."""
        scores_LN: NDArray[np.float32] = whole(self.scores)
        masks_LN = np.zeros_like(scores_LN)
        np.put_along_axis(masks_LN, kept_channels(scores_LN, self.settings.intermediate_size), 1.0, axis=-1)
        return torch.from_numpy(masks_LN)

    def _decided(self) -> torch.Tensor:
        """Share of the channels whose mask is within a tenth of 0 or 1."""
        mask_LN = self._soft_LN.detach()
        return ((mask_LN < 0.1) | (mask_LN > 0.9)).float().mean()

    def _attach(self, model: torch.nn.Module) -> None:
        if self._attached:
            return
        layers: Any = next(module for name, module in model.named_modules() if name.endswith("layers"))
        for number, layer in enumerate(layers):
            layer.mlp.down_proj.register_forward_pre_hook(self._hook(number))
        self._attached = True

    def _hook(self, number: int) -> Callable[[torch.nn.Module, Any], tuple[torch.Tensor]]:
        def masked(down_proj: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            (x_BSN,) = inputs
            if down_proj.training:
                mask_N = self._soft_LN[number]
            else:
                if self._hard_LN is None:
                    self._hard_LN = self.hard_masks().to(x_BSN.device)
                mask_N = self._hard_LN[number]
            return (x_BSN * mask_N.to(x_BSN.dtype),)

        return masked
