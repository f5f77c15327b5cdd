"""Sorting the channels of a model by the size of their activations, largest first.

A permutation of the residual stream, or of one layer's feed-forward channels, changes nothing in what a model
computes when every matrix that writes and every matrix that reads the channels is permuted alike. It costs
nothing at run time and gathers the outliers: few blocks of 64 columns then need fine activations
(native/kernels/kernels.h), and columns of like importance share a palette.

Shape letters: H residual channels, F feed-forward channels, N rows, K columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pomona.models.config import ModelConfig

_READ_RESIDUAL = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head", "embed_tokens")
_WRITE_RESIDUAL = ("o_proj", "down_proj")
_RESIDUAL_NORMS = ("input_layernorm", "post_attention_layernorm", "norm")


@dataclass(frozen=True)
class ChannelOrder:
    """residual [H]: the old channel at each new place; feed_forward: layer -> [F] likewise."""

    residual: NDArray[np.intp]
    feed_forward: tuple[NDArray[np.intp], ...]

    def apply(self, name: str, tensor: NDArray[np.uint16]) -> NDArray[np.uint16]:
        """The tensor of this name (Hugging Face), its channels in the new order."""
        parts = name.split(".")
        module = parts[-2]
        if parts[-1] == "bias":  # of q, k and v: neither of the two kinds of channel
            return tensor
        if module in _RESIDUAL_NORMS:
            return np.ascontiguousarray(tensor[self.residual])
        if module in _READ_RESIDUAL:
            tensor = tensor[:, self.residual]
        if module in _WRITE_RESIDUAL:
            tensor = tensor[self.residual]
        if module in ("gate_proj", "up_proj"):
            tensor = tensor[self.feed_forward[int(parts[2])]]
        if module == "down_proj":
            tensor = tensor[:, self.feed_forward[int(parts[2])]]
        return np.ascontiguousarray(tensor)

    def importance(self, module: str, importance_K: NDArray[np.float32]) -> NDArray[np.float32]:
        """The importance of a linear module's columns in the new order."""
        parts = module.split(".")
        if parts[-1] in _READ_RESIDUAL:
            return importance_K[self.residual]
        if parts[-1] == "down_proj":
            return importance_K[self.feed_forward[int(parts[2])]]
        return importance_K


def channel_order(config: ModelConfig, importance: Mapping[str, NDArray[np.float32]]) -> ChannelOrder:
    """Orders by the mean root of the second moments over all readers (importance: module -> [K], mean 1)."""
    size_H = np.zeros(config.hidden_size)
    for module, moments_K in importance.items():
        if module.rpartition(".")[2] in _READ_RESIDUAL:
            size_H += np.sqrt(moments_K.astype(np.float64))
    feed_forward = tuple(
        _descending(importance[f"model.layers.{layer}.mlp.down_proj"].astype(np.float64))
        for layer in range(config.num_hidden_layers)
    )
    return ChannelOrder(_descending(size_H), feed_forward)


def _descending(size: NDArray[np.float64]) -> NDArray[np.intp]:
    return np.argsort(-size, kind="stable")
