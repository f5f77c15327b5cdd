"""Fixtures of the scheduler's tests: a tiny model, its engines and adapters (scheduler_helpers.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
from scheduler_helpers import CONFIG, Steps
from test_adapters import write_adapter

from pomona.models.random_init import random_model
from pomona.runtime.adapters import AdapterCache
from pomona.runtime.engine import Engine


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(CONFIG, tmp_path_factory.mktemp("scheduler") / "small", seed=8, perturb_norms=True)


@pytest.fixture(scope="module")
def adapter_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: write_adapter(folder / name, CONFIG, seed=seed, rank=4, size=1.0)
        for seed, name in enumerate("abcdef")
    }


@pytest.fixture(scope="module")
def plain(directory: Path) -> Engine:
    """Makes the references: every request alone, no prefix cache."""
    return Engine.load(directory, threads=1)


@pytest.fixture
def engine(directory: Path) -> Engine:
    return Engine.load(directory, threads=1, kv_tokens=4096)


@pytest.fixture
def adapters(engine: Engine, adapter_dirs: dict[str, Path]) -> AdapterCache:
    cache = AdapterCache(engine)
    for name, path in adapter_dirs.items():
        cache.register(name, path)
    return cache


@pytest.fixture
def steps(engine: Engine) -> Steps:
    return Steps(engine)
