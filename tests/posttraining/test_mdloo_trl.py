"""The first inner step against an independent implementation: TRL's RLOO on a small Qwen3 model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mdloo_samples import tiny_model

from benchmarks.posttraining_trl import first_step, gaps


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trl")
    return first_step(tiny_model(folder / "tiny"), folder / "out")


@pytest.mark.parametrize("estimator", ["exact", "sampled"])
def test_the_first_step_has_the_advantages_and_the_gradient_of_rloo(
    captured: dict[str, Any], estimator: str
) -> None:
    found = gaps(captured, estimator)
    assert found["log_ratio"] > 0.05 and found["gradient_norm"] > 0.1  # there is something to compare
    assert found["advantages"] < 1e-4 and found["gradient"] < 1e-4
