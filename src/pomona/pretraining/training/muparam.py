"""muParam (simple): updates of matrices scaled by width, so that a learning rate found small holds large.

AFM report section 3.2, after Wortsman et al. 2023, section 3.2.4, and AXLearn's honeycrisp: the update of
every attention and FFN matrix is multiplied by base / width, never by more than 1; embedding and norm scales
keep factor 1; the initial variance of a matrix is 1/fan_in (models/random_init.py). Only the learned update
is scaled, not the weight decay.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch

_MATRIX = re.compile(r"\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.weight$")


def update_factor(name: str, width: int, base_width: int | None) -> float:
    """The factor of the tensor `name` of a model of that hidden size; 1 for all without a base width."""
    if base_width is None or _MATRIX.search(name) is None:
        return 1.0
    return min(1.0, base_width / width)


def parameter_groups(
    named: Iterable[tuple[str, torch.nn.Parameter]],
    width: int,
    base_width: int | None,
    *,
    lr: float | None = None,
) -> list[dict[str, Any]]:
    """Groups for the optimizer, one per factor, each with `factor`.

    lr: where given (AdamW, whose update knows no factor), each group's `lr` is it times the factor.
    """
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            groups.setdefault(update_factor(name, width, base_width), []).append(parameter)
    made: list[dict[str, Any]] = []
    for factor, parameters in sorted(groups.items(), reverse=True):
        group: dict[str, Any] = {"params": parameters}
        made.append(group | ({"factor": factor} if lr is None else {"lr": lr * factor}))
    return made
