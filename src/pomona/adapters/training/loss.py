"""Cross-entropy over the tokens that are learnt, and its gradient. Logits exist for these places alone.

    loss = sum of  -log p(token)           d loss / d logits = p - one-hot(token)

The products with the head go in blocks, the sums over the vocabulary in smaller ones that stay in the
processor's cache, and the gradient takes the place of the logits.

Shape letters: C learnt tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_TOKENS = 512  # of one product with the head
CACHED_TOKENS = 32  # whose logits fit the cache in float32


def cross_entropy_gradient(states_CD: Tensor, wanted_C: Tensor, head_VD: Tensor) -> tuple[float, Tensor]:
    """(sum of the loss, its gradient [C, D] with respect to the states)."""
    total, grads = 0.0, torch.empty_like(states_CD)
    for start in range(0, len(states_CD), BLOCK_TOKENS):
        block = slice(start, start + BLOCK_TOKENS)
        logits = torch.mm(states_CD[block], head_VD.t())
        wanted = wanted_C[block]
        for low in range(0, len(logits), CACHED_TOKENS):
            part = slice(low, low + CACHED_TOKENS)
            log_p = logits[part].float().log_softmax(-1)
            place = wanted[part, None]
            total -= float(log_p.gather(1, place).sum())
            probabilities = log_p.exp_()
            probabilities.scatter_add_(1, place, probabilities.new_full(place.shape, -1.0))
            logits[part].copy_(probabilities)
        torch.mm(logits, head_VD, out=grads[block])
    return total, grads


def cross_entropy(states_CD: Tensor, wanted_C: Tensor, head_VD: Tensor) -> tuple[float, int]:
    """(sum of the loss, how often the likeliest token was the wanted one)."""
    total, right = 0.0, 0
    for start in range(0, len(states_CD), CACHED_TOKENS * 4):
        part = slice(start, start + CACHED_TOKENS * 4)
        log_p = torch.mm(states_CD[part], head_VD.t()).float().log_softmax(-1)
        total -= float(log_p.gather(1, wanted_C[part, None]).sum())
        right += int((log_p.argmax(-1) == wanted_C[part]).sum())
    return total, right
