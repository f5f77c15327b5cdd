"""The reward model's network (AFM report, section 4.4): the state of the last token of the last layer goes
into one linear head, the reward, and into four small classifiers, one per grading, with three grades each.

The backbone and `score` are a sequence classifier with one label, as transformers, TRL and others have it.
The classifiers' width is that of the state, their activation SiLU (the report says MLP, no more).

Shape letters: B rows, S tokens, D hidden, G gradings, C grades.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.utils import ModelOutput

from pomona.posttraining.preferences import GRADES, QUESTIONS


@dataclass
class RewardOutput(ModelOutput):  # type: ignore[misc]
    """logits [B, 1]: the reward, under the name that classifiers give it. gradings [B, G, C]: logits."""

    logits: Tensor | None = None
    gradings: Tensor | None = None


class GradingHeads(nn.Module):  # type: ignore[misc]
    """One classifier per question, under the question's name."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in QUESTIONS:
            layers = (nn.Linear(width, width), nn.SiLU(), nn.Linear(width, len(GRADES)))
            self.add_module(name, nn.Sequential(*layers))

    def forward(self, state_BD: Tensor) -> Tensor:
        return torch.stack([getattr(self, name)(state_BD) for name in QUESTIONS], 1)


class GradedRewardNetwork(PreTrainedModel):  # type: ignore[misc]
    """Made from the config of a causal model of the same backbone."""

    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = AutoModel.from_config(config, dtype=torch.float32)
        width = config.hidden_size
        self.score = nn.Linear(width, 1, bias=False)
        nn.init.normal_(self.score.weight, std=(width + 1) ** -0.5)  # rewards of the size of 1 at first
        self.gradings = GradingHeads(width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> RewardOutput:
        """input_ids, attention_mask [B, S]: padded on either side; a row has at least one token."""
        position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        states_BSD = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state
        state_BD = last_state(states_BSD, attention_mask)
        # The heads are small, and rewards are compared: float32, whatever the backbone is computed in.
        with torch.autocast(state_BD.device.type, enabled=False):
            state_BD = state_BD.to(self._head_type())
            return RewardOutput(logits=self.score(state_BD), gradings=self.gradings(state_BD))

    def _head_type(self) -> torch.dtype:
        return next(self.score.parameters()).dtype


def last_state(states_BSD: Tensor, mask_BS: Tensor) -> Tensor:
    """[B, D]: of the last token that is no padding, wherever the padding stands."""
    places_S = torch.arange(mask_BS.shape[1], device=mask_BS.device)
    last_B = (mask_BS.long() * places_S).argmax(-1)
    return states_BSD[torch.arange(len(states_BSD), device=states_BSD.device), last_B]
