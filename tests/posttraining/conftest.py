"""A tiny chat model, and how every training run here is made: one thread, float32, few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.adapters.adapt_samples import tiny_model

QUICK: dict[str, Any] = {"precision": "float32", "batch": 8, "pass_rows": 4, "rank": 4, "lr": 3e-3}


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 128 hidden units whose tokens are bytes."""
    return tiny_model(tmp_path_factory.mktemp("tiny") / "model")
