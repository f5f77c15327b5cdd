"""Writing a PEFT adapter directory: what adapter_file.py reads, whole or not at all.

Shape letters: N outputs, K inputs, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pomona.models.model_directory import PROVENANCE_FILE, ModelDirectoryWriter, write_json
from pomona.models.safetensors_file import SafetensorsWriter, TensorSpec, bf16_from_float32
from pomona.runtime.adapter_file import CONFIG_FILE, WEIGHTS_FILE

Pair = tuple[NDArray[np.float32], NDArray[np.float32]]


def write_adapter(
    target: Path,
    pairs: Mapping[str, Pair],
    *,
    scale: float,
    record: Mapping[str, Any],
    overwrite: bool = False,
) -> Path:
    """Writes A [R, K] and B [N, R] of every module in bfloat16.

    scale: alpha / rank. record: the adapter's pomona.json. PomonaError: `target` is there and not
    `overwrite`, or cannot be written.
    """
    with ModelDirectoryWriter(target, overwrite=overwrite, mark=CONFIG_FILE) as writer:
        write_adapter_files(writer.path, pairs, scale=scale, record=record)
    return target


def write_adapter_files(
    folder: Path,
    pairs: Mapping[str, Pair],
    *,
    scale: float,
    record: Mapping[str, Any],
    base: str | None = None,
) -> None:
    """The same into a folder that is there. base: a note of where the base lies, for whoever reads it."""
    rank = len(next(iter(pairs.values()))[0])
    targets = list(dict.fromkeys(name.rpartition(".")[2] for name in pairs))
    arrays = {
        f"base_model.model.{name}.lora_{letter}.weight": bf16_from_float32(array)
        for name, pair in pairs.items()
        for letter, array in zip("AB", pair, strict=True)
    }
    specs = [TensorSpec(name, "BF16", array.shape) for name, array in arrays.items()]
    config = peft_config(rank, scale * rank, targets) | {"base_model_name_or_path": base}
    write_json(folder / CONFIG_FILE, config)
    with SafetensorsWriter(folder / WEIGHTS_FILE, specs, {"format": "pt"}) as file:
        for name, array in arrays.items():
            file.write(name, array)
    write_json(folder / PROVENANCE_FILE, dict(record))


def peft_config(rank: int, alpha: float, targets: list[str]) -> dict[str, Any]:
    """adapter_config.json of a plain LoRA."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }
