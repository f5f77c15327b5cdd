"""A 16-bit GGUF without a tokenizer: what llama.cpp's quantiser starts from in the benchmarks.

    write_gguf(config, path, values)           # any values, tensor by tensor
    write_checkpoint(directory, path)          # a bf16 model directory of ours, every weight as it is

Matrices are float16 and norms float32. A float16 has more digits than a bf16 and fewer exponents: normal
values below 2^-14 lose digits that no product would notice, and a value above 65,504 is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import BenchmarkError

if TYPE_CHECKING:
    from pomona.models.config import ModelConfig

Values = Callable[[str, tuple[int, ...]], NDArray[Any]]
Progress = Callable[[str, int, int], None]
LABEL = "16-bit GGUF"


def write_gguf(config: ModelConfig, path: Path, values: Values, progress: Progress | None = None) -> None:
    """The model of `config`. values: (our name of a tensor, its shape) -> float16 matrix or float32 vector.

    Query and key rows of a Llama are put into the order that GGUF has for them. BenchmarkError for shapes
    that GGUF's metadata would describe otherwise.
    """
    import gguf

    from pomona.models.export_gguf import ARCHITECTURES, add_shape, gguf_names, interleaved_rows

    if config.model_type not in ARCHITECTURES or config.rope_scaling is not None:
        raise BenchmarkError(
            f"{config.model_type}: only {' and '.join(ARCHITECTURES)} without scaled rotary frequencies are "
            "written; choose another model"
        )
    writer = gguf.GGUFWriter(path, config.model_type)
    add_shape(writer, config)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("no_vocab")
    shapes = config.tensor_shapes()
    theirs = gguf_names(config)
    for name, shape in shapes.items():
        kind = np.dtype(np.float16 if len(shape) == 2 else np.float32)
        writer.add_tensor_info(theirs[name], shape, kind, math.prod(shape) * kind.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, (name, shape) in enumerate(shapes.items()):
        if progress is not None:
            progress(LABEL, done, len(shapes))
        array = values(name, shape)
        if config.model_type == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            array = array[interleaved_rows(shape[0], config.head_dim)]
        writer.write_tensor_data(np.ascontiguousarray(array))
    writer.close()
    if progress is not None:
        progress(LABEL, len(shapes), len(shapes))


def write_checkpoint(directory: Path, path: Path, progress: Progress | None = None) -> None:
    """The weights of a bf16 model directory. The file takes its name when it is whole.

    BenchmarkError for a value that float16 cannot hold, PomonaError for a directory that is no such model.
    """
    from pomona.models.config import ModelConfig
    from pomona.models.safetensors_file import Checkpoint, float32_from_bf16

    config = ModelConfig.from_directory(directory)
    with Checkpoint(directory) as checkpoint:

        def values(name: str, shape: tuple[int, ...]) -> NDArray[Any]:
            stored = checkpoint.array(name)
            if stored.dtype != np.uint16:
                raise BenchmarkError(f"{directory}: {name} is not bf16; give the 16-bit model")
            weight = float32_from_bf16(stored)
            if len(shape) == 1:
                return weight
            if not float(np.abs(weight).max()) <= np.finfo(np.float16).max:
                raise BenchmarkError(f"{directory}: {name} is too large for float16; no file for llama.cpp")
            return weight.astype(np.float16)

        unfinished = path.with_name(f"{path.name}.part")
        write_gguf(config, unfinished, values, progress)
    unfinished.replace(path)
