"""GGUF export: what we write, our own importer reads back to the bit; and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pomona.data.train_tokenizer import TokenizerOptions, train_sentencepiece, write_tokenizer
from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.export_gguf import export_gguf, sentencepiece_vocabulary
from pomona.models.gguf_file import GgufFile
from pomona.models.import_gguf import import_gguf
from pomona.models.model_directory import CONFIG_FILE, write_json
from pomona.models.presets import PRESETS
from pomona.models.random_init import random_model
from pomona.models.safetensors_file import SafetensorsFile
from pomona.models.tokenizer import Tokenizer

LINES = ["the cat sat on the mat, and the dog ran", "a boat; a coat: 12 notes", "def f(x):  return x"] * 30
TEXT = "the dog sat on 12 boats.\n\tand   ran – fine ☃"


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of each family with a tokenizer as `pomona data` trains them."""
    folder = tmp_path_factory.mktemp("gguf")
    (folder / "tokenizer").mkdir()
    options = TokenizerOptions(vocab_size=320)
    write_tokenizer(train_sentencepiece(LINES, options), folder / "tokenizer", options)
    values = vars(PRESETS["afm-nano"]) | {"vocab_size": 384, "hidden_size": 128, "num_hidden_layers": 2}
    config = ModelConfig(**(values | {"model_type": request.param, "intermediate_size": 192}))
    return random_model(
        config, folder / "model", seed=5, perturb_norms=True, tokenizer_from=folder / "tokenizer"
    )


def test_our_importer_reads_it_back(model: Path, tmp_path: Path) -> None:
    file = export_gguf(model, tmp_path / "model.gguf")
    again = import_gguf(file, tmp_path / "again")
    # The importer counts every token that ends a turn, <|im_end|> too.
    config = replace(ModelConfig.from_directory(again), eos_token_ids=(1,))
    assert config == ModelConfig.from_directory(model)
    with (
        SafetensorsFile(model / "model.safetensors") as one,
        SafetensorsFile(again / "model.safetensors") as two,
    ):
        assert set(one.tensors) == set(two.tensors)
        assert all(np.array_equal(one.array(name), two.array(name)) for name in one.tensors)


def test_half_precision_is_the_same_to_its_rounding(model: Path, tmp_path: Path) -> None:
    file = export_gguf(model, tmp_path / "model.gguf", weights="f16")
    with GgufFile(file) as read, SafetensorsFile(model / "model.safetensors") as one:
        name = "model.layers.1.mlp.down_proj.weight"
        bits = one.array(name).astype(np.uint32) << 16
        assert np.allclose(
            read.dequantize("blk.1.ffn_down.weight"), bits.view(np.float32), rtol=1e-3, atol=1e-6
        )


def test_its_vocabulary_is_that_of_the_tokenizer(model: Path, tmp_path: Path) -> None:
    with GgufFile(export_gguf(model, tmp_path / "model.gguf")) as read:
        tokens = read.metadata["tokenizer.ggml.tokens"]
        kinds = read.metadata["tokenizer.ggml.token_type"]
        assert read.metadata["tokenizer.ggml.eos_token_id"] == 1
        assert read.metadata["tokenizer.ggml.add_space_prefix"] is False
    tokenizer = Tokenizer.from_directory(model)
    assert isinstance(tokens, list) and isinstance(kinds, np.ndarray)
    assert len(tokens) == 384
    assert [tokens[index] for index in tokenizer.encode(TEXT)] == [
        tokenizer.id_to_token(index) for index in tokenizer.encode(TEXT)
    ]
    assert kinds[1] == 3 and kinds[2] == 2 and list(kinds[320:]) == [3] * 64  # control, unknown, filling
    assert sum(kinds == 6) == 256


def test_what_is_there_is_not_overwritten_unasked(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    target.write_bytes(b"mine")
    with pytest.raises(PomonaError, match="already exists"):
        export_gguf(model, target)
    assert target.read_bytes() == b"mine"
    export_gguf(model, target, overwrite=True)
    assert target.read_bytes()[:4] == b"GGUF"


def test_a_failure_leaves_nothing(model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    (broken / "tokenizer.json").unlink()
    with pytest.raises(PomonaError):
        export_gguf(broken, tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_other_families_are_refused(tmp_path: Path) -> None:
    other = random_model(replace(PRESETS["afm-nano"], model_type="qwen2", vocab_size=64), tmp_path / "other")
    with pytest.raises(PomonaError, match="only llama and qwen3"):
        export_gguf(other, tmp_path / "model.gguf")


def test_a_compressed_model_is_refused(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(model, other)
    config = json.loads((other / CONFIG_FILE).read_text())
    write_json(other / CONFIG_FILE, config | {"quantization_config": {"quant_method": "palettized"}})
    with pytest.raises(PomonaError, match="is compressed"):
        export_gguf(other, tmp_path / "model.gguf")


@pytest.mark.parametrize(
    "tokenizer",
    [
        {},
        {"model": {"type": "WordPiece"}},
        {"model": {"type": "BPE", "byte_fallback": True, "vocab": {}, "merges": []}, "normalizer": None},
        {"model": {"type": "BPE", "byte_fallback": False, "vocab": {}, "merges": []}},
    ],
)
def test_other_tokenizers_are_refused(tokenizer: dict[str, Any]) -> None:
    with pytest.raises(PomonaError, match="SentencePiece kind"):
        sentencepiece_vocabulary(tokenizer, "model", 8)
