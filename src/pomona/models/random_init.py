"""A model directory with random weights: the start of a training run, and the stand-in for a trained model in
tests.

AFM's initialisation as in Apple's AXLearn "honeycrisp" (no truncation): every projection normal with variance
1/fan_in, the embedding (and an output matrix of its own) normal with variance 1/hidden, norm scales 1, biases
0. Values are drawn tensor by tensor in float32, rounded to bfloat16, and written as they come, so that the
2.7 B preset needs some tens of MB of memory.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.model_directory import (
    CONFIG_FILE,
    TOKENIZER_FILES,
    WEIGHTS_FILE,
    ModelDirectoryWriter,
    Progress,
    copy_files,
    write_json,
)
from pomona.models.safetensors_file import CHUNK, write_bf16_file


def random_model(
    config: ModelConfig,
    target: Path | str,
    *,
    seed: int = 0,
    perturb_norms: bool = False,
    tokenizer_from: Path | str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write a plain bf16 model directory of random weights to `target` and give its path.

    A tensor's values depend on `seed` and its name alone. `perturb_norms` draws norm scales from 0.5 to 1.5
    and biases from a normal of deviation 0.5, for tests that must notice a norm or bias that is forgotten.
    `tokenizer_from` is a directory whose tokenizer files are copied, and whose config.json, if it has one,
    gives the special tokens; without it the directory has no tokenizer.

    Raises PomonaError: target exists, disk full, tokenizer missing or larger than the vocabulary.
    """
    if seed < 0:
        raise PomonaError(f"seed {seed}: must not be negative; choose another")
    if tokenizer_from is not None:
        config = _with_special_tokens(config, Path(tokenizer_from))
    shapes = config.tensor_shapes()
    need = 2 * sum(math.prod(shape) for shape in shapes.values())

    def pieces(name: str) -> Iterator[NDArray[np.float32]]:
        return _values(name, shapes[name], seed, perturb_norms)

    with ModelDirectoryWriter(target, overwrite=overwrite, need_bytes=need) as writer:
        write_json(writer.path / CONFIG_FILE, config.to_hf())
        if tokenizer_from is not None:
            copy_files(Path(tokenizer_from), writer.path, TOKENIZER_FILES)
        label = "random weights"
        write_bf16_file(
            writer.path / WEIGHTS_FILE, shapes, pieces, source=label, label=label, progress=progress
        )
    return writer.target


def initial_values(name: str, shape: tuple[int, ...], *, seed: int) -> NDArray[np.float32]:
    """The values that training starts from, float32; rounded they are those of `random_model`."""
    return np.concatenate(list(_values(name, shape, seed, False))).reshape(shape)


def _values(name: str, shape: tuple[int, ...], seed: int, perturb: bool) -> Iterator[NDArray[np.float32]]:
    # The name is part of the key, so that the order of the file and the other tensors do not matter.
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    for start in range(0, math.prod(shape), CHUNK):
        count = min(CHUNK, math.prod(shape) - start)
        if len(shape) == 2:  # the embedding is read by row: its "fan_in" is the width too
            values = generator.standard_normal(count, dtype=np.float32)
            values *= np.float32(1.0 / math.sqrt(shape[1]))
        elif name.endswith(".bias"):
            values = np.zeros(count, np.float32)
            if perturb:
                values += np.float32(0.5) * generator.standard_normal(count, dtype=np.float32)
        else:
            values = np.ones(count, np.float32)
            if perturb:
                values += generator.random(count, dtype=np.float32) - np.float32(0.5)
        yield values


def _with_special_tokens(config: ModelConfig, directory: Path) -> ModelConfig:
    from tokenizers import Tokenizer

    path = directory / "tokenizer.json"
    if not path.is_file():
        raise PomonaError(
            f"{directory}: has no tokenizer.json to copy; give the directory of a model that has one"
        )
    try:
        tokens = Tokenizer.from_file(str(path)).get_vocab_size(with_added_tokens=True)
    except Exception as error:  # the library raises plain Exception
        raise PomonaError(f"{path}: is not a usable tokenizer ({error}); get it again") from error
    if tokens > config.vocab_size:
        raise PomonaError(
            f"{path}: has {tokens} tokens, the model only {config.vocab_size}; choose a smaller tokenizer"
        )
    if not (directory / CONFIG_FILE).is_file():
        return config
    other = ModelConfig.from_directory(directory)
    return replace(
        config,
        bos_token_id=other.bos_token_id,
        eos_token_ids=other.eos_token_ids,
        pad_token_id=other.pad_token_id,
    )
