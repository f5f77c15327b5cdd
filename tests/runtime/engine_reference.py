"""transformers in float32 on the weights of a model directory, and how far the engine's logits are from it.

Shape letters: T tokens, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pomona.models.config import ModelConfig
from pomona.models.palettized import dequantize_tensor
from pomona.models.safetensors_file import Checkpoint, float32_from_bf16


def transformers_model(directory: Path) -> Any:
    """The model of a directory in transformers, float32. Packed weights are de-quantised, not rounded."""
    import torch
    import transformers

    torch.set_num_threads(1)  # two that wait for each other on a busy machine take far longer
    transformers.utils.logging.disable_progress_bar()
    raw = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    raw.pop("quantization_config", None)
    config = transformers.AutoConfig.for_model(**raw)
    config.dtype = torch.float32
    weights = {name: torch.from_numpy(array) for name, array in float32_weights(directory).items()}
    kind = getattr(transformers, raw["architectures"][0])
    model, info = kind.from_pretrained(
        None, config=config, state_dict=weights, dtype=torch.float32, output_loading_info=True
    )
    missing = {"lm_head.weight"} if config.tie_word_embeddings else set()
    assert (
        set(info["missing_keys"]) <= missing and not info["unexpected_keys"] and not info["mismatched_keys"]
    )
    return model.eval()


@contextmanager
def round_keys_and_values(model: Any) -> Iterator[None]:
    """Within it, the attention of a transformers model reads keys and values rounded to bf16."""
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        rounded = [x.to(torch.bfloat16).to(torch.float32) for x in (key, value)]
        return sdpa_attention_forward(module, query, *rounded, mask, **options)

    AttentionInterface.register("sdpa_bf16_cache", attend)
    AttentionMaskInterface.register("sdpa_bf16_cache", sdpa_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation("sdpa_bf16_cache")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def float32_weights(directory: Path) -> dict[str, NDArray[np.float32]]:
    """Every weight of a directory by its plain name, however it is stored. Own memory."""
    config = ModelConfig.from_directory(directory)
    with Checkpoint(directory) as checkpoint:
        return {
            name: dequantize_tensor(checkpoint, name.removesuffix(".weight")).copy()
            if len(shape) == 2
            else float32_from_bf16(checkpoint.array(name)).copy()
            for name, shape in config.tensor_shapes().items()
        }


def transformers_logits(model: Any, ids: list[int]) -> NDArray[np.float32]:
    """[T, V]"""
    import torch

    with torch.inference_mode():
        logits: NDArray[np.float32] = model(torch.tensor([ids])).logits[0].numpy()
    return logits


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """[T, V] in float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


@dataclass
class Agreement:
    """Kullback-Leibler divergence reference -> engine, and equality of the likeliest token, by position."""

    kl: list[float] = field(default_factory=list)
    same_top: list[bool] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)  # of the reference: how much there is to tell apart

    def add(self, reference: NDArray[np.float32], engine: NDArray[np.float32]) -> None:
        assert reference.shape == engine.shape
        for start in range(0, len(reference), 64):  # 64 rows: float64 over the vocabulary takes memory
            p, q = log_softmax(reference[start : start + 64]), log_softmax(engine[start : start + 64])
            weight = np.exp(p)
            self.kl += (weight * (p - q)).sum(axis=1).tolist()
            self.entropy += (-weight * p).sum(axis=1).tolist()
            self.same_top += (p.argmax(axis=1) == q.argmax(axis=1)).tolist()

    @property
    def positions(self) -> int:
        return len(self.kl)

    @property
    def mean_kl(self) -> float:
        return float(np.mean(self.kl))

    @property
    def max_kl(self) -> float:
        return float(np.max(self.kl))

    @property
    def top_rate(self) -> float:
        return float(np.mean(self.same_top))

    @property
    def mean_entropy(self) -> float:
        return float(np.mean(self.entropy))

    def __str__(self) -> str:
        return (
            f"{self.positions} positions, mean KL {self.mean_kl:.2e}, largest {self.max_kl:.2e}, "
            f"same top token {100 * self.top_rate:.2f} %, entropy {self.mean_entropy:.2f} nats"
        )
