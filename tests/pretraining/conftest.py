"""One thread for all, and one finished run that several files look at."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pretrain_samples import settings, write_recipe

from pomona.pretraining.pretrain import RunReport, pretrain
from pomona.pretraining.recipe import load_recipe


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunReport]:
    """A recipe of two stages, the second with another rotary base and longer sequences, run to its end."""
    folder = tmp_path_factory.mktemp("pretrain")
    values = settings(tokens=8 * 32 * 24, evaluate_every=12, save_every=12)
    longer = {"name": "lengthening", "sequence_length": 64, "tokens": 2048, "batch": 4, "micro_batch": 2}
    last = {"rope_theta": 6_315_089, "peak_lr": 0.002, "activation_checkpointing": True}
    values["stages"].append(values["stages"][0] | longer | last)
    recipe = load_recipe(write_recipe(folder, values))
    report = pretrain(recipe, folder / "out", gguf=True)
    assert report is not None
    return folder, report
