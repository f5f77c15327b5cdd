"""`pomona inspect`: every figure comes from the description of the files, told twice where it matters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pomona.models.config import ModelConfig

Command = Callable[..., Any]

CONFIG = ModelConfig(
    model_type="llama",
    vocab_size=320,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=256,
    rope_theta=10000.0,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
)

TENSORS = [
    SimpleNamespace(name="model.embed_tokens.weight", shape=(320, 64), format="int8", bits=8.25, bytes=21120),
    SimpleNamespace(name="model.norm.weight", shape=(64,), format="bf16", bits=16.0, bytes=128),
    SimpleNamespace(name="q", shape=(64, 64), format="palette4", bits=4.04, bytes=2068),
    SimpleNamespace(name="k", shape=(32, 64), format="palette4", bits=4.04, bytes=1034),
]


@pytest.fixture
def smol(put_model: Callable[..., Path], fake_module: Callable[..., None]) -> Path:
    directory = put_model("smol", CONFIG.to_hf())

    def describe(path: Path) -> SimpleNamespace:
        assert path == directory
        return SimpleNamespace(
            tensors=TENSORS,
            projection_bits_per_weight=4.0391,
            file_bits_per_weight=7.4567,
            file_bytes=24_350,
            fingerprint="b1946ac92492d234",
        )

    fake_module("pomona.models.palettized", describe=describe)
    return directory


def test_the_summary_tells_bits_per_weight_both_ways(pomona: Command, smol: Path) -> None:
    outcome = pomona("inspect", "smol")
    assert outcome.code == 0, outcome.err
    for words in (
        str(smol),
        "LlamaForCausalLM, 2 layers",
        f"{CONFIG.non_embedding_parameters + CONFIG.embedding_parameters:,} (20,480 in the embedding)",
        "4 query and 2 key/value heads of 16",
        "320, output matrix shared with the input",
        "256 tokens, RoPE base 10,000",
        "24.4 kB (24,350 bytes)",
        "4.039 in the projections alone",
        "7.457 in the whole file",
        "b1946ac92492d234",
    ):
        assert words in outcome.out
    assert "model.norm.weight" not in outcome.out


def test_formats_are_added_up_the_largest_first(pomona: Command, smol: Path) -> None:
    lines = [line.split() for line in pomona("inspect", "smol").out.splitlines()[-4:]]
    assert lines == [
        ["format", "tensors", "weights", "bytes", "bits", "each"],
        ["int8", "1", "20,480", "21,120", "8.25"],
        ["palette4", "2", "6,144", "3,102", "4.04"],
        ["bf16", "1", "64", "128", "16.00"],
    ]


def test_tensors_are_listed_on_demand(pomona: Command, smol: Path) -> None:
    lines = [line.split() for line in pomona("inspect", "smol", "--tensors").out.splitlines()[-4:]]
    assert lines[0] == ["model.embed_tokens.weight", "320x64", "int8", "8.25", "21,120"]
    assert len(lines) == len(TENSORS)


def test_json(pomona: Command, smol: Path) -> None:
    found = pomona("inspect", "smol", "--json").json
    assert found["projection_bits_per_weight"] == 4.0391
    assert found["file_bits_per_weight"] == 7.4567
    assert (found["file_bytes"], found["fingerprint"]) == (24_350, "b1946ac92492d234")
    assert found["config"]["hidden_size"] == 64
    assert found["formats"]["palette4"] == {"tensors": 2, "weights": 6144, "bytes": 3102}
    assert "tensors" not in found
    tensors = pomona("inspect", "smol", "--json", "--tensors").json["tensors"]
    assert tensors[2] == {"name": "q", "shape": [64, 64], "format": "palette4", "bits": 4.04, "bytes": 2068}


def test_a_damaged_config_is_one_line_that_names_the_file(pomona: Command, smol: Path) -> None:
    (smol / "config.json").write_text("{")
    outcome = pomona("inspect", "smol")
    assert outcome.code == 2
    assert "config.json" in outcome.err
    assert outcome.err.count("\n") == 1
