"""Soft-Top-K: a differentiable choice of k out of N by scores (CoDA: Lei et al. 2023; AFM report, section
3.4).

For scores s, a budget k and a temperature e the mask is

    lambda = argmax  s . lambda + e H(lambda)     over  0 <= lambda_i <= 1,  sum lambda = k,
    H = - sum lambda_i ln lambda_i

which is lambda_i = min(1, exp((s_i + a) / e)) with the one number a that makes the sum k. CoDA finds a by
some twenty rounds of coordinate ascent. Sorting finds it exactly: if the m largest scores are at 1, the
others share what is left as a softmax, (k - m) softmax(s / e), and the right m is the least one for which no
share is above 1.

Shape letters: L rows, each with a choice of its own; N scores of a row.
"""

from __future__ import annotations

import math

import torch


def soft_top_k(scores_LN: torch.Tensor, k: float, temperature: float) -> torch.Tensor:
    """The mask [L, N], values in (0, 1], each row with the sum k; differentiable in the scores.

    k may be a fraction: a budget that shrinks step by step. As the temperature falls the mask becomes that of
    the k largest scores; rows of equal scores have k / N everywhere. Computed in float32 or float64.

    Raises ValueError: k not in (0, N], or a temperature that is not above 0.
    """
    width = scores_LN.shape[-1]
    if not 0 < k <= width:
        raise ValueError(f"k = {k} must lie above 0 and not above the {width} scores")
    if not temperature > 0:
        raise ValueError(f"temperature = {temperature} must be above 0")
    scores_LN = scores_LN if scores_LN.dtype == torch.float64 else scores_LN.float()
    logits_LN = scores_LN / temperature
    full_LN, left_L1 = _at_one(logits_LN.detach(), k)
    # Which scores are at 1 changes at single points only, where both sides agree: no gradient is lost.
    shares_LN = logits_LN.masked_fill(full_LN, -math.inf).softmax(-1) * left_L1
    return torch.where(full_LN, torch.ones_like(shares_LN), shares_LN)


def _at_one(logits_LN: torch.Tensor, k: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Which entries are at 1, and what budget the others of the row share [L, 1]."""
    sorted_LN, order_LN = logits_LN.sort(dim=-1, descending=True, stable=True)
    rest_LN = sorted_LN.flip(-1).logcumsumexp(-1).flip(-1)  # of this one and all below it
    counts_N = torch.arange(logits_LN.shape[-1], device=logits_LN.device)
    left_N = k - counts_N.to(logits_LN.dtype)
    # With the `count` largest at 1, the largest of the others gets left * exp(sorted - rest).
    fits_LN = (left_N.clamp(min=1e-30).log() + sorted_LN - rest_LN <= 0) | (left_N <= 1)
    full_L1 = fits_LN.int().argmax(-1, keepdim=True)
    ranks_LN = torch.empty_like(order_LN).scatter_(-1, order_LN, counts_N.expand_as(order_LN))
    return ranks_LN < full_L1, left_N[full_L1]
