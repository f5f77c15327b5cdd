"""Structured pruning of the FFN: schedule, choice of channels, and the smaller dense model (section 3.4).

A channel of the FFN is a row of gate_proj, the same row of up_proj and the column of down_proj that they
feed. Masks over the channels are learned during a stage (training/pruning.py); at its end the channels with
the largest scores of every layer are cut out of the three matrices, in their old order:

    STAGE/pruned/model.safetensors      float32, as a checkpoint's, of the narrower shape
    STAGE/pruned/pruned.json            the checkpoint that it was cut from, and the channels of every layer

All layers keep equally many, because config.json has one intermediate_size.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.model_directory import (
    WEIGHTS_FILE,
    ModelDirectoryWriter,
    Progress,
    read_json_object,
    write_json,
)
from pomona.models.safetensors_file import SafetensorsFile, SafetensorsWriter, TensorSpec
from pomona.pretraining.recipe import PruneSettings

FOLDER, RECORD = "pruned", "pruned.json"
SCORES = "scores"  # the name of the masks' scores [layers, channels] among the loss's parameters
_STATE, _LOSS = "state.json", "loss.safetensors"  # of a checkpoint (training/checkpoint.py)
_FFN = re.compile(r"model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj\.weight")


def budget(settings: PruneSettings, width: int, share: float) -> float:
    """FFN channels that the masks of a layer add up to, after that share of the stage's steps."""
    done = min(share / settings.shrink, 1.0)
    return width - done * (width - settings.intermediate_size)


def temperature(settings: PruneSettings, share: float) -> float:
    """Of the Soft-Top-K, after that share of the steps: geometric, from its start to its end."""
    start, end = settings.temperature
    return float(start * (end / start) ** min(share / settings.harden, 1.0))


def kept_channels(scores_LN: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """The k channels with the largest scores of every layer, ascending [L, k]; of equal ones the first."""
    order_LN = np.argsort(-scores_LN, axis=-1, kind="stable")
    return np.sort(order_LN[:, :k], axis=-1)


def narrowed(config: ModelConfig, settings: PruneSettings) -> ModelConfig:
    """The shape that pruning leaves."""
    return replace(config, intermediate_size=settings.intermediate_size)


def prune_checkpoint(
    checkpoint: Path,
    config: ModelConfig,
    settings: PruneSettings,
    target: Path,
    *,
    progress: Progress = lambda label, done, total: None,
) -> Path:
    """Cuts the last checkpoint of a stage of pruning down to `target`, which is whole or absent; gives it.

    config: the wide shape. Nothing is done if `target` was made from this very checkpoint. PomonaError: the
    checkpoint has no scores of that shape, or another thing lies at `target`.
    """
    sums = read_json_object(checkpoint / _STATE).get("files", {})
    if (target / RECORD).is_file() and read_json_object(target / RECORD).get("from") == sums:
        return target
    kept_LK = kept_channels(_scores(checkpoint, config), settings.intermediate_size)
    shapes = narrowed(config, settings).tensor_shapes()
    specs = [TensorSpec(name, "F32", shape) for name, shape in shapes.items()]
    with (
        SafetensorsFile(checkpoint / WEIGHTS_FILE) as file,
        ModelDirectoryWriter(target, overwrite=True, mark=RECORD) as directory,
    ):
        with SafetensorsWriter(directory.path / WEIGHTS_FILE, specs, {"format": "pt"}) as writer:
            for done, name in enumerate(shapes):
                progress("prune", done, len(shapes))
                writer.write(name, cut(name, file.array(name), kept_LK))
        record: dict[str, Any] = {"from": sums, "channels": kept_LK.tolist()}
        write_json(directory.path / RECORD, record)
    return target


def cut(name: str, values: NDArray[np.float32], kept_LK: NDArray[np.int64]) -> NDArray[np.float32]:
    """The tensor `name` with the kept channels alone: rows of gate and up, columns of down, others whole."""
    match = _FFN.fullmatch(name)
    if match is None:
        return values
    kept_K = kept_LK[int(match[1])]
    return np.ascontiguousarray(values[:, kept_K] if match[2] == "down" else values[kept_K])


def _scores(checkpoint: Path, config: ModelConfig) -> NDArray[np.float32]:
    path = checkpoint / _LOSS
    if not path.is_file():
        raise PomonaError(f"{checkpoint}: holds no scores of masks; its stage did not prune, give --restart")
    with SafetensorsFile(path) as file:
        found = np.array(file.array(SCORES) if SCORES in file.tensors else [], np.float32)
    if found.shape != (config.num_hidden_layers, config.intermediate_size) or not np.isfinite(found).all():
        raise PomonaError(f"{path}: has no scores for this shape; give --restart")
    return found
