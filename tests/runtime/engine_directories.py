"""Copies of model directories with other settings or tensors: what a test does to a model before it loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pomona.models.safetensors_file import (
    Checkpoint,
    SafetensorsWriter,
    TensorSpec,
    bf16_from_float32,
    float32_from_bf16,
)

Tensors = dict[str, tuple[str, NDArray[Any]]]  # name -> safetensors dtype, array (BF16 as uint16)


def rewritten(
    source: Path,
    target: Path,
    *,
    config: Callable[[dict[str, Any]], None] | None = None,
    tensors: Callable[[Tensors], None] | None = None,
) -> Path:
    """A copy of `source` after `config` edited its config.json and `tensors` its tensors, both in place."""
    shutil.copytree(source, target)
    if config is not None:
        raw = json.loads((source / "config.json").read_text(encoding="utf-8"))
        config(raw)
        (target / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    if tensors is not None:
        with Checkpoint(source) as checkpoint:
            stored = {name: (info.dtype, checkpoint.array(name)) for name, info in checkpoint.tensors.items()}
            tensors(stored)
            specs = [TensorSpec(name, dtype, array.shape) for name, (dtype, array) in stored.items()]
            with SafetensorsWriter(target / "model.safetensors", specs) as writer:
                for name, (_, array) in stored.items():
                    writer.write(name, array)
    return target


def multiply(tensors: Tensors, ending: str, factor: float) -> None:
    """Scales every bf16 tensor whose name has this ending; there must be one."""
    names = [name for name in tensors if name.endswith(ending)]
    assert names, f"no tensor ends with {ending}"
    for name in names:
        dtype, array = tensors[name]
        assert dtype == "BF16"
        tensors[name] = (dtype, bf16_from_float32(float32_from_bf16(array) * np.float32(factor)))


def swap(tensors: Tensors, one: str, other: str) -> None:
    """Exchanges all tensors whose names end with `one` and with `other`; they come in pairs."""
    pairs = [(name, name.removesuffix(one) + other) for name in tensors if name.endswith(one)]
    assert pairs
    for first, second in pairs:
        tensors[first], tensors[second] = tensors[second], tensors[first]
