"""export_hf: any model directory becomes a plain bf16 Hugging Face directory that computes the same."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.export import export_hf
from pomona.models.presets import preset
from pomona.models.random_init import random_model
from pomona.models.safetensors_file import Checkpoint, SafetensorsWriter, TensorSpec

NANO = replace(preset("afm-nano"), num_hidden_layers=1)


def source_model(path: Path, config: ModelConfig = NANO) -> Path:
    random_model(config, path, perturb_norms=True)
    (path / "tokenizer.json").write_text('{"copied": true}')
    (path / "pomona.json").write_text('{"version": 1}')
    (path / "LICENSE").write_text("Be good.")
    (path / "compression_report.json").write_text("{}")
    return path


def test_a_plain_model_comes_out_bit_for_bit(tmp_path: Path) -> None:
    source = source_model(tmp_path / "s")
    assert export_hf(source, tmp_path / "t") == tmp_path / "t"
    assert sorted(os.listdir(tmp_path / "t")) == [
        "LICENSE",
        "config.json",
        "model.safetensors",
        "pomona.json",
        "tokenizer.json",
    ]
    for name in os.listdir(tmp_path / "t"):
        assert (tmp_path / "t" / name).read_bytes() == (source / name).read_bytes()


def test_weights_in_float32_are_rounded(tmp_path: Path) -> None:
    source = source_model(tmp_path / "s")
    shapes = NANO.tensor_shapes()
    third = {name: np.full(shape, 1 / 3, np.float32) for name, shape in shapes.items()}
    with SafetensorsWriter(
        source / "model.safetensors", [TensorSpec(name, "F32", shape) for name, shape in shapes.items()]
    ) as writer:
        for name, values in third.items():
            writer.write(name, values)
    with Checkpoint(export_hf(source, tmp_path / "t")) as checkpoint:
        for name in shapes:
            assert checkpoint.tensors[name].dtype == "BF16"
            assert (checkpoint.array(name) == 0x3EAB).all()  # 1/3 = 0x3EAAAAAB, rounded up


def test_the_exported_config_says_nothing_of_quantisation_and_loads_in_transformers(tmp_path: Path) -> None:
    """transformers is the `train` extra; the project's own test run always installs it."""
    transformers = pytest.importorskip("transformers")
    target = export_hf(source_model(tmp_path / "s"), tmp_path / "t")
    assert "quantization_config" not in json.loads((target / "config.json").read_text())
    model, report = transformers.AutoModelForCausalLM.from_pretrained(target, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.num_parameters() == NANO.embedding_parameters + NANO.non_embedding_parameters


def test_a_recovery_adapter_is_not_dropped_silently(tmp_path: Path) -> None:
    source = source_model(tmp_path / "s")
    (source / "adapters" / "recovery").mkdir(parents=True)
    with pytest.raises(PomonaError, match="has a recovery adapter, which export cannot merge"):
        export_hf(source, tmp_path / "t")
    assert os.listdir(tmp_path) == ["s"]


def test_weights_that_do_not_fit_the_config_are_refused_by_name(tmp_path: Path) -> None:
    source = source_model(tmp_path / "s")
    (source / "config.json").write_text(json.dumps(replace(NANO, num_hidden_layers=2).to_hf()))
    with pytest.raises(PomonaError, match=r"lacks the tensor 'model\.layers\.1\.input_layernorm\.weight'"):
        export_hf(source, tmp_path / "t")
    assert os.listdir(tmp_path) == ["s"]


def test_what_is_no_model_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PomonaError, match=r"config\.json: cannot be read"):
        export_hf(tmp_path, tmp_path / "t")


def test_an_existing_target_is_only_replaced_on_demand(tmp_path: Path) -> None:
    source, target = source_model(tmp_path / "s"), source_model(tmp_path / "t", replace(NANO, vocab_size=64))
    with pytest.raises(PomonaError, match="already exists"):
        export_hf(source, target)
    export_hf(source, target, overwrite=True)
    assert ModelConfig.from_directory(target) == NANO


def test_a_model_can_be_exported_onto_itself(tmp_path: Path) -> None:
    source = source_model(tmp_path / "s")
    before = (source / "model.safetensors").read_bytes()
    export_hf(source, source, overwrite=True)
    assert (source / "model.safetensors").read_bytes() == before
