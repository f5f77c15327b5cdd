"""What a checkpoint is worth on held-out sequences: loss, loss at its best temperature, top-1.

A student of a teacher's likeliest tokens is taught to be surer than the text is: with 0.9 of the weight on
one token it pays for every other. Held-out loss alone would show that and hide what was learned, so two
figures stand beside it that do not depend on how sure a model is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from pomona.models.config import ModelConfig

TEMPERATURES = tuple(float(t) for t in np.geomspace(0.5, 4.0, 61))
_ROWS = 8  # sequences of a pass


@dataclass(frozen=True)
class Judgement:
    """loss: cross-entropy of the next token, nats. tempered: with the logits divided by the temperature that
    is best for the other half of the sequences. accuracy: share of tokens that were the likeliest."""

    loss: float
    tempered: float
    temperature: float  # mean of the two
    accuracy: float


def judge(weights: Path, config: ModelConfig, windows: Sequence[Any] | Any) -> Judgement:
    """Of the float32 weights in a safetensors file, on all windows [S + 1]."""
    import torch

    from pomona.models.safetensors_file import SafetensorsFile
    from pomona.pretraining.training.model import build_model, values_from

    with SafetensorsFile(weights) as file:
        model = build_model(config, values_from({name: file.array(name) for name in file.tensors})).eval()
    rows = torch.as_tensor(np.stack([windows[number] for number in range(len(windows))]))
    losses, hits = [], []
    with torch.no_grad():
        for part in rows.split(_ROWS):
            logits = model(input_ids=part[:, :-1], use_cache=False).logits.float()
            losses.append(by_temperature(logits, part[:, 1:]))
            hits.append((logits.argmax(-1) == part[:, 1:]).float().mean(-1))
    return judgement(torch.cat(losses, 1).numpy(), torch.cat(hits).numpy())


def by_temperature(logits_BSV: torch.Tensor, labels_BS: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of every sequence at every one of TEMPERATURES [T, B]."""
    import torch

    wanted_BS = logits_BSV.gather(-1, labels_BS[..., None])[..., 0]
    return torch.stack(
        [((logits_BSV / t).logsumexp(-1) - wanted_BS / t).mean(-1) for t in (1.0, *TEMPERATURES)]
    )


def judgement(losses_TB: Any, hits_B: Any) -> Judgement:
    """losses_TB: row 0 at temperature 1, then those of TEMPERATURES."""
    plain, others = losses_TB[0], losses_TB[1:]
    halves = np.arange(plain.size) % 2 == 0, np.arange(plain.size) % 2 == 1
    best = [int(others[:, half].mean(-1).argmin()) for half in halves]
    tempered = (others[best[0]][halves[1]].sum() + others[best[1]][halves[0]].sum()) / plain.size
    mean = sum(TEMPERATURES[index] for index in best) / 2
    return Judgement(float(plain.mean()), float(tempered), mean, float(hits_B.mean()))
