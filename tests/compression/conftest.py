"""A tokenizer of bytes, a tiny model that has it, and a way to change single tensors of a model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pomona.models.presets import PRESETS
from pomona.models.random_init import random_model
from pomona.models.safetensors_file import Checkpoint, SafetensorsWriter, TensorSpec

TINY = replace(
    PRESETS["afm-nano"],
    vocab_size=288,
    hidden_size=128,
    intermediate_size=320,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=2048,
    eos_token_ids=(),
    pad_token_id=None,
)
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

Change = Callable[[NDArray[np.uint16]], NDArray[Any] | None]


@pytest.fixture(scope="session")
def byte_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of a tokenizer whose tokens are the 256 bytes, with a chat template and no end token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    directory = tmp_path_factory.mktemp("byte-tokenizer")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text("{}")
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer_dir: Path) -> Path:
    """A random model of two layers that can be calibrated; with a licence and a provenance."""
    directory = tmp_path_factory.mktemp("tiny") / "tiny"
    random_model(TINY, directory, seed=5, perturb_norms=True, tokenizer_from=byte_tokenizer_dir)
    (directory / "LICENSE").write_text("Be good.\n")
    (directory / "pomona.json").write_text(json.dumps({"version": 1, "source": "random"}))
    (directory / "notes.txt").write_text("not part of a model")
    return directory


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text("The quick brown fox jumps over the lazy dog, façade and all. " * 30, encoding="utf-8")
    return path


def change_tensors(source: Path, target: Path, changes: Mapping[str, Change]) -> Path:
    """A copy of a plain model with some tensors changed: to BF16, to F32, or (by None) left out."""
    shutil.copytree(source, target)
    with Checkpoint(source) as checkpoint:
        arrays: dict[str, NDArray[Any]] = {}
        for name in checkpoint.tensors:
            array: NDArray[Any] | None = checkpoint.array(name).copy()
            if name in changes and array is not None:
                array = changes[name](array)
            if array is not None:
                arrays[name] = array
    assert set(changes) <= set(checkpoint.tensors)
    dtypes = {"uint16": "BF16", "float32": "F32"}
    specs = [TensorSpec(name, dtypes[array.dtype.name], array.shape) for name, array in arrays.items()]
    (target / "model.safetensors").unlink()
    with SafetensorsWriter(target / "model.safetensors", specs) as writer:
        for name, array in arrays.items():
            writer.write(name, array)
    return target


@pytest.fixture(scope="session")
def changed() -> Callable[[Path, Path, Mapping[str, Change]], Path]:
    return change_tensors
