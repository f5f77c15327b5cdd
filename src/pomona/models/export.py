"""Export of any model directory as a plain bf16 Hugging Face directory, which transformers, vLLM, MLX and
others load.

Packed matrices are de-quantised (models/palettized.py), one at a time; everything else is copied. What comes
out computes what the compressed model computes, up to bfloat16 rounding of the de-quantised weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.import_hf import FLOATS, check_tensors
from pomona.models.model_directory import (
    CONFIG_FILE,
    LICENCE_FILES,
    PROVENANCE_FILE,
    TOKENIZER_FILES,
    WEIGHTS_FILE,
    ModelDirectoryWriter,
    Progress,
    copy_files,
    read_json_object,
    write_json,
)
from pomona.models.safetensors_file import Checkpoint, write_bf16_file


def export_hf(
    source: Path | str, target: Path | str, *, overwrite: bool = False, progress: Progress | None = None
) -> Path:
    """Write the model directory `source` to `target` in plain bf16 and give the path of `target`.

    Adapters under `source`/adapters are not part of the result. A model with a recovery adapter is refused,
    because without that adapter it would be another model.

    Raises PomonaError: source is no sound model directory, target exists, disk full.
    """
    source = Path(source)
    if (source / "adapters" / "recovery").exists():
        raise PomonaError(
            f"{source}: has a recovery adapter, which export cannot merge; use `pomona export`, which writes "
            "the adapters beside the model, or move adapters/recovery away to export the base without it"
        )
    with ModelDirectoryWriter(target, overwrite=overwrite, need_bytes=plain_bytes(source)) as writer:
        write_plain(source, writer.path, progress=progress)
    return writer.target


def plain_bytes(source: Path) -> int:
    """Bytes of all weights of the model directory in bf16. PomonaError: no sound config.json."""
    config = ModelConfig.from_directory(source)
    return 2 * sum(math.prod(shape) for shape in config.tensor_shapes().values())


def write_plain(source: Path, folder: Path, *, progress: Progress | None = None) -> None:
    """Write the files of the plain bf16 model into `folder`, which exists. Errors as export_hf."""
    raw = read_json_object(source / CONFIG_FILE)
    config = ModelConfig.from_hf(raw, str(source / CONFIG_FILE))
    shapes = config.tensor_shapes()
    with Checkpoint(source) as checkpoint:
        pieces = _packed_reader(checkpoint, raw)
        if pieces is None:
            check_tensors(checkpoint, config)

        def read(name: str) -> Iterator[NDArray[Any]]:
            yield checkpoint.array(name) if pieces is None else pieces(name, shapes[name])

        write_json(folder / CONFIG_FILE, config.to_hf())
        copy_files(source, folder, TOKENIZER_FILES + LICENCE_FILES + (PROVENANCE_FILE,))
        write_bf16_file(
            folder / WEIGHTS_FILE,
            shapes,
            read,
            source=str(source),
            label="export weights",
            progress=progress,
        )


def _packed_reader(
    checkpoint: Checkpoint, config_json: dict[str, Any]
) -> Callable[[str, tuple[int, ...]], NDArray[Any]] | None:
    """How to read a tensor of a palettised model by its plain name, or None for a plain model."""
    if config_json.get("quantization_config") is None:
        return None
    from pomona.models.palettized import dequantize_tensor, is_packed, read_quantization_config

    # Refuses what this version cannot read.
    read_quantization_config(config_json, str(checkpoint.directory / CONFIG_FILE))

    def read(name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        module = name.removesuffix(".weight")
        if module != name and is_packed(checkpoint, module):
            values: NDArray[Any] = dequantize_tensor(checkpoint, module)
        else:
            values = checkpoint.array(name)
            if checkpoint.tensors[name].dtype not in FLOATS:
                raise PomonaError(
                    f"{checkpoint.directory}: tensor {name!r} is {checkpoint.tensors[name].dtype}, "
                    "neither packed nor floating point; compress the model again"
                )
        if values.shape != shape:
            raise PomonaError(
                f"{checkpoint.directory}: tensor {name!r} is {list(values.shape)}, by its config "
                f"{list(shape)}; compress the model again"
            )
        return values

    return read
