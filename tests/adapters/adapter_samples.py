"""Small models and adapters for the tests of the store and its commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from pomona.models.config import ModelConfig
from pomona.models.palettized import describe
from pomona.models.random_init import random_model

TINY = ModelConfig(
    model_type="llama",
    vocab_size=256,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=32,
    max_position_embeddings=512,
    rope_theta=10_000.0,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
)
KINDS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def tiny_model(directory: Path, seed: int = 5) -> Path:
    """A random model that has a licence."""
    random_model(TINY, directory, seed=seed)
    (directory / "LICENSE").write_text("The licence of the base.\n")
    return directory


def peft_adapter(
    directory: Path,
    *,
    rank: int = 4,
    seed: int = 0,
    kinds: list[str] = KINDS,
    record: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """A random adapter of TINY as PEFT writes it; `record` is its pomona.json."""
    random = np.random.default_rng(seed)
    tensors = {}
    for module, (rows, columns) in TINY.linear_shapes().items():
        if module.rpartition(".")[2] in kinds:
            for letter, shape in (("A", (rank, columns)), ("B", (rows, rank))):
                values = random.normal(size=shape, scale=0.1).astype(np.float32)
                tensors[f"base_model.model.{module}.lora_{letter}.weight"] = values
    directory.mkdir(parents=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": kinds, **options}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    if record is not None:
        (directory / "pomona.json").write_text(json.dumps(record))
    return directory


def adapter_for(model: Path, directory: Path, **options: Any) -> Path:
    """An adapter that names `model` as its base."""
    record = {"version": 1, "task": "summarize", "base_fingerprint": describe(model).fingerprint}
    return peft_adapter(directory, record={**record, "license": "apache-2.0"}, **options)


def edit_weights(directory: Path, value: float) -> None:
    """Sets one value of the last tensor."""
    from safetensors.numpy import load_file

    path = directory / "adapter_model.safetensors"
    tensors = load_file(path)
    sorted(tensors.items())[-1][1].flat[3] = value
    save_file(tensors, path)
