"""The end of a run: float32 checkpoint -> Hugging Face directory in bfloat16, which everything else loads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pomona.models.config import ModelConfig
from pomona.models.model_directory import (
    CONFIG_FILE,
    PROVENANCE_FILE,
    TOKENIZER_FILES,
    WEIGHTS_FILE,
    ModelDirectoryWriter,
    Progress,
    copy_files,
    write_json,
)
from pomona.models.safetensors_file import SafetensorsFile, write_bf16_file


def export_checkpoint(
    weights: Path,
    config: ModelConfig,
    tokenizer: Path,
    target: Path,
    *,
    record: Mapping[str, Any],
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write the model whose float32 weights are in the file `weights` to `target`; gives its path.

    record: the model's pomona.json, how it came to be. PomonaError: a file that is no checkpoint of this
    config, a value that is not finite, `target` there already and not `overwrite`, disk full.
    """
    shapes = config.tensor_shapes()
    need = 2 * sum(math.prod(shape) for shape in shapes.values())
    ends = config.eos_token_ids
    with (
        ModelDirectoryWriter(target, overwrite=overwrite, need_bytes=need) as writer,
        SafetensorsFile(weights) as file,
    ):
        write_json(writer.path / CONFIG_FILE, config.to_hf())
        generation = {"eos_token_id": list(ends), "pad_token_id": config.pad_token_id}
        write_json(writer.path / "generation_config.json", generation)
        copy_files(tokenizer, writer.path, (*TOKENIZER_FILES, "tokenizer.model"))
        write_json(writer.path / PROVENANCE_FILE, dict(record))
        write_bf16_file(
            writer.path / WEIGHTS_FILE,
            shapes,
            lambda name: [file.array(name).reshape(shapes[name])],
            source=str(weights),
            label="export",
            progress=progress,
        )
    return writer.target
