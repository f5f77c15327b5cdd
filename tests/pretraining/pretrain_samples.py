"""A recipe, text and windows small enough to train on in a second."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from pomona.models.config import ModelConfig
from pomona.pretraining.recipe import Recipe

VOCABULARY = 320
WORDS = (
    "the",
    "sea",
    "was",
    "calm",
    "and",
    "a",
    "ship",
    "came",
    "home",
    "with",
    "salt",
    "bread",
    "for",
    "all",
)


def settings(**changes: Any) -> dict[str, Any]:
    """The YAML of a tiny recipe, as a dictionary; `changes` replace keys of the first stage."""
    stage = {
        "name": "core",
        "tokens": 8 * 32 * 12,
        "sequence_length": 32,
        "batch": 8,
        "micro_batch": 4,
        "peak_lr": 0.01,
        "floor": 0.005,
        "warm_up": 3,
        "weight_decay": 3.16e-4,
        "mixture": {"text": 1.0},
        "evaluate_every": 6,
        "save_every": 3,
    }
    return {
        "name": "tiny",
        "model": {
            "preset": "afm-nano",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 32,
        },
        "tokenizer": {"vocab_size": VOCABULARY},
        "data": {"sources": {"text": {"packages": ["python"]}}},
        "precision": "float32",
        "stages": [stage | changes],
    }


def recipe_of(values: dict[str, Any]) -> Recipe:
    return Recipe.model_validate(values)


def config_of(recipe: Recipe) -> ModelConfig:
    """The shape of its first stage with a vocabulary."""
    return replace(recipe.config(recipe.stages[0]), vocab_size=VOCABULARY)


def windows(count: int, length: int = 32, seed: int = 0) -> list[NDArray[np.int64]]:
    """Sequences that a model can learn: each token is the one before it plus one, two or three."""
    rng = np.random.default_rng(seed)
    return [np.cumsum(rng.integers(1, 4, length + 1)) % VOCABULARY for _ in range(count)]


def write_text(path: Path, documents: int = 400, seed: int = 0) -> Path:
    """A JSONL file of sentences."""
    rng = np.random.default_rng(seed)
    rows = [
        json.dumps({"text": " ".join(rng.choice(WORDS, 40)).capitalize() + f". Page {number}."})
        for number in range(documents)
    ]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def write_recipe(folder: Path, values: dict[str, Any]) -> Path:
    """The recipe as a file beside its text, `text.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "text.jsonl")
    values["data"] = {"sources": {"text": {"files": ["text.jsonl"]}}, "validation_share": 0.1}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path
