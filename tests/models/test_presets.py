"""The presets: Apple's published numbers, our choices, and the whole resolved config of each in tests/golden.

After a wanted change, `UPDATE_GOLDEN=1 pytest tests/models/test_presets.py` rewrites the golden files.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.presets import PRESETS, preset

GOLDEN = Path(__file__).parents[1] / "golden"


def resolved(config: ModelConfig) -> dict[str, Any]:
    return {
        "config": config.to_hf(),
        "embedding_parameters": config.embedding_parameters,
        "non_embedding_parameters": config.non_embedding_parameters,
        "tensors": len(config.tensor_shapes()),
        "layer_0": {name: list(s) for name, s in config.tensor_shapes().items() if ".layers.0." in name},
    }


def test_the_presets_are_these_four() -> None:
    assert list(PRESETS) == ["afm-on-device", "afm-85m", "afm-nano", "afm-server"]


@pytest.mark.parametrize("name", PRESETS)
def test_the_resolved_config_is_the_golden_one(name: str) -> None:
    path = GOLDEN / f"preset_{name}.json"
    text = json.dumps(resolved(preset(name)), indent=2) + "\n"
    if os.environ.get("UPDATE_GOLDEN") == "1":
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text


def test_afm_on_device_has_the_numbers_of_the_report() -> None:
    """Table 1: width 3072, 24 heads of 128, 8 for keys and values, 26 layers, 2.58 B + 0.15 B parameters."""
    config = preset("afm-on-device")
    assert (config.hidden_size, config.head_dim, config.num_hidden_layers) == (3072, 128, 26)
    assert (config.num_attention_heads, config.num_key_value_heads) == (24, 8)
    assert round(config.non_embedding_parameters / 1e9, 3) == 2.587  # with the FFN of Apple's open config
    assert round(config.embedding_parameters / 1e9, 3) == 0.151
    assert (config.rope_theta, config.rms_norm_eps, config.max_position_embeddings) == (500_000.0, 1e-5, 4096)
    assert (config.vocab_size, config.intermediate_size) == (49_152, 8064)
    assert config.tie_word_embeddings
    assert config.qk_norm
    assert not config.qkv_bias


def test_afm_85m_is_85_million_parameters_without_the_embedding() -> None:
    config = preset("afm-85m")
    assert round(config.non_embedding_parameters / 1e6) == 85
    assert config.num_attention_heads * config.head_dim == config.hidden_size == 768
    assert config.intermediate_size == 3 * config.hidden_size


def test_afm_nano_is_small_and_fits_every_packed_layout() -> None:
    config = preset("afm-nano")
    assert config.non_embedding_parameters + config.embedding_parameters < 5_000_000
    for out_features, in_features in config.linear_shapes().values():
        assert out_features % 16 == 0
        assert in_features % 64 == 0


def test_afm_server_has_what_the_report_tells_of_it() -> None:
    config = preset("afm-server")
    assert config.num_key_value_heads == 8
    assert round(config.vocab_size, -3) == 100_000
    assert config.num_attention_heads * config.head_dim == config.hidden_size


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_qwen3_checkpoint_for_everyone_else(name: str) -> None:
    assert preset(name).to_hf()["architectures"] == ["Qwen3ForCausalLM"]
    assert ModelConfig.from_hf(preset(name).to_hf(), name) == preset(name)


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(PomonaError, match="afm-on-device, afm-85m, afm-nano, afm-server"):
        preset("afm-2025")
