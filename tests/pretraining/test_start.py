"""Beginning with a model directory: its weights, its shape, its fingerprint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pretrain_samples import config_of, recipe_of, settings, write_recipe

from pomona.errors import PomonaError
from pomona.models.random_init import initial_values, random_model
from pomona.models.safetensors_file import bf16_from_float32, float32_from_bf16
from pomona.pretraining.pretrain import RunReport, pretrain
from pomona.pretraining.recipe import load_recipe
from pomona.pretraining.start import ModelWeights

Finished = tuple[Path, RunReport]


def test_weights_are_those_of_the_directory_in_float32(tmp_path: Path) -> None:
    config = config_of(recipe_of(settings()))
    with ModelWeights(random_model(config, tmp_path / "model", seed=3)) as weights:
        assert list(weights) == list(config.tensor_shapes()) and len(weights) == len(config.tensor_shapes())
        for name, shape in config.tensor_shapes().items():
            drawn = initial_values(name, shape, seed=3)
            assert np.array_equal(weights[name], float32_from_bf16(bf16_from_float32(drawn)))
        weights.check_shape(replace(config, rope_theta=1e6))  # positions are the stage's


def test_another_shape_and_another_family_are_refused(tmp_path: Path) -> None:
    config = config_of(recipe_of(settings()))
    with (
        ModelWeights(random_model(config, tmp_path / "model")) as weights,
        pytest.raises(PomonaError, match=r"its intermediate_size is 128, .* begins with 96"),
    ):
        weights.check_shape(replace(config, intermediate_size=96))
    llama = random_model(replace(config, model_type="llama"), tmp_path / "llama")
    with pytest.raises(PomonaError, match="is a llama model"):
        ModelWeights(llama)


def started(finished: Finished, folder: Path, **model: Any) -> Path:
    values = settings(tokens=8 * 32 * 2, warm_up=0, peak_lr=1e-9, weight_decay=0.0, evaluate_every=1)
    values["start"] = str(finished[1].model)
    values["tokenizer"] = {"path": str(finished[0] / "out" / "tokenizer")}
    values["model"] |= model
    values["stages"][0]["rope_theta"] = 6_315_089
    return write_recipe(folder, values)


def test_a_run_begins_with_the_model_that_start_names(finished: Finished, tmp_path: Path) -> None:
    report = pretrain(load_recipe(started(finished, tmp_path)), tmp_path / "out")
    assert report is not None
    with ModelWeights(report.model) as ours, ModelWeights(finished[1].model) as theirs:
        for name in theirs:
            assert np.allclose(ours[name], theirs[name], atol=1e-6), name


def test_a_start_of_another_shape_is_said(finished: Finished, tmp_path: Path) -> None:
    path = started(finished, tmp_path, intermediate_size=64)
    with pytest.raises(PomonaError, match="intermediate_size is 128"):
        pretrain(load_recipe(path), tmp_path / "out")
    values = yaml.safe_load(path.read_text()) | {"start": "nowhere"}
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(PomonaError, match="nowhere"):
        pretrain(load_recipe(path), tmp_path / "other")
