"""Two servers: the real 4-bit model with two adapters, and a small random model that answers without end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest
from serving_server import Running, linked_model, loaded, serving, small_model

from pomona.models.config import ModelConfig
from pomona.models.palettized import describe
from pomona.runtime.adapter_writer import write_adapter


def write_random_adapter(model: Path, target: Path, *, seed: int, size: float = 0.02, rank: int = 4) -> Path:
    """An adapter of `model` that changes what it says."""
    random = np.random.default_rng(seed)
    pairs = {
        module: (
            random.normal(size=(rank, columns), scale=size).astype(np.float32),
            random.normal(size=(rows, rank), scale=size).astype(np.float32),
        )
        for module, (rows, columns) in ModelConfig.from_directory(model).linear_shapes().items()
        if module.endswith(("q_proj", "v_proj", "down_proj"))
    }
    record = {"version": 1, "task": "summarize", "base_fingerprint": describe(model).fingerprint}
    return write_adapter(target, pairs, scale=2.0, record=record)


@pytest.fixture(scope="session")
def served_dir(smollm2_4bit_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real model with the adapters `recovery`, which is the default, and `shifted`."""
    folder = tmp_path_factory.mktemp("served")
    model = linked_model(smollm2_4bit_dir, folder / "smollm2-135m-4bit")
    write_random_adapter(model, model / "adapters" / "recovery", seed=1, size=0.002)
    write_random_adapter(model, model / "adapters" / "shifted", seed=2, size=0.05)
    return model


@pytest.fixture(scope="session")
def real_server(served_dir: Path) -> Iterator[Running]:
    with loaded(served_dir) as model, serving(model, deadline_seconds=120) as running:
        yield running


@pytest.fixture(scope="session")
def client(real_server: Running) -> openai.OpenAI:
    return real_server.client()


@pytest.fixture(scope="session")
def small_dir_served(smollm2_4bit_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model with the adapters `a` and `b`."""
    model = small_model(smollm2_4bit_dir, tmp_path_factory.mktemp("small") / "small")
    for seed, name in enumerate("ab"):
        write_random_adapter(model, model / "adapters" / name, seed=seed, size=0.5)
    return model
