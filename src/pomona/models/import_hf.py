"""Import of a Hugging Face model, from a directory or by its hub id, as a plain bf16 model directory.

The weights (F32, F16 or BF16, one file or shards) become one bf16 `model.safetensors`; config.json is written
anew from what was understood of it; tokenizer, generation and licence files are copied as they are. A
checkpoint must have exactly the tensors of its config: what is missing, surplus or misshapen is an error that
names it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.model_directory import (
    CONFIG_FILE,
    LICENCE_FILES,
    TOKENIZER_FILES,
    WEIGHTS_FILE,
    ModelDirectoryWriter,
    Progress,
    copy_files,
    read_json_object,
    write_json,
)
from pomona.models.safetensors_file import CHUNK, Checkpoint, bf16_from_float32, write_bf16_file

FLOATS = ("BF16", "F16", "F32")
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = [CONFIG_FILE, "*.safetensors", "*.safetensors.index.json", *TOKENIZER_FILES, *LICENCE_FILES]


def import_hf(
    source: Path | str, target: Path | str, *, overwrite: bool = False, progress: Progress | None = None
) -> Path:
    """Write the model of `source` (a directory, or a hub id such as "org/name") to `target` and give its
    path.

    Raises PomonaError: source not found or not reachable, config not supported, no tokenizer.json, tensors
    that do not fit the config, values that are not finite, target exists, disk full.
    """
    with ModelDirectoryWriter(target, overwrite=overwrite) as writer:
        convert(find_source(str(source), progress), writer.path, progress=progress)
    return writer.target


def convert(directory: Path, target: Path, *, progress: Progress | None = None) -> None:
    """Convert the model in `directory` into the existing directory `target`; errors as `import_hf`."""
    config_path = directory / CONFIG_FILE
    raw = read_json_object(config_path)
    config = ModelConfig.from_hf(raw, str(config_path))
    if raw.get("quantization_config") is not None:
        raise PomonaError(
            f"{directory}: is compressed already; use it as it is, or export it to 16 bit first"
        )
    if not (directory / "tokenizer.json").is_file():
        raise PomonaError(
            f"{directory}: has no tokenizer.json; write one with transformers: "
            "AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY)"
        )
    with Checkpoint(directory) as checkpoint:
        check_tensors(checkpoint, config)
        write_json(target / CONFIG_FILE, config.to_hf())
        copy_files(directory, target, TOKENIZER_FILES + LICENCE_FILES)
        write_bf16_file(
            target / WEIGHTS_FILE,
            config.tensor_shapes(),
            lambda name: [checkpoint.array(name)],
            source=str(directory),
            label="import weights",
            progress=progress,
        )


def check_tensors(checkpoint: Checkpoint, config: ModelConfig) -> None:
    """Check that `checkpoint` holds exactly the floating-point tensors of `config`. Raises PomonaError that
    names one.

    Two leftovers of other programs are let pass: buffers of rotary frequencies, which follow from the config,
    and an output matrix beside a tied embedding, if the two are equal.
    """
    directory, shapes = checkpoint.directory, config.tensor_shapes()
    names = {name for name in checkpoint.tensors if not name.endswith("rotary_emb.inv_freq")}
    if config.tie_word_embeddings and _HEAD in names and _EMBEDDING in names:
        names.remove(_HEAD)
        if not _equal(checkpoint, _HEAD, _EMBEDDING):
            raise PomonaError(
                f"{directory}: the config ties {_HEAD!r} to the embedding, but the two differ; "
                "set tie_word_embeddings to false in config.json if the matrix is meant"
            )
    for problem, wrong in (
        ("lacks", [name for name in shapes if name not in names]),
        ("has, against its config,", sorted(names - set(shapes))),
    ):
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise PomonaError(
                f"{directory}: its checkpoint {problem} the tensor {wrong[0]!r}{more}; "
                "get a checkpoint and config that match"
            )
    for name, shape in shapes.items():
        info = checkpoint.tensors[name]
        if info.dtype not in FLOATS:
            raise PomonaError(
                f"{directory}: tensor {name!r} is {info.dtype}, only {', '.join(FLOATS)} can be imported; "
                "get the checkpoint in 16 bit"
            )
        if info.shape != shape:
            raise PomonaError(
                f"{directory}: tensor {name!r} is {list(info.shape)}, by its config {list(shape)}; "
                "get a checkpoint and config that match"
            )


def is_hub_id(source: str) -> bool:
    """Whether `source` is spelled like a hub id, "organisation/name"."""
    return _HUB_ID.fullmatch(source) is not None


def find_source(source: str, progress: Progress | None = None, files: Sequence[str] = _HUB_FILES) -> Path:
    """The directory of `source`: itself, or the snapshot of that hub model, downloaded if it is not here.

    files: patterns of what a download brings.
    """
    directory = Path(source).expanduser()
    if source and directory.is_dir():
        return directory
    if not is_hub_id(source):
        raise PomonaError(
            f"{source}: is neither a directory nor a hub id (organisation/name); check the spelling"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise PomonaError(
            f"{source}: the hub needs huggingface_hub; pip install huggingface_hub, or give a directory"
        ) from error
    if progress is not None:
        progress(f"download {source}", 0, 0)
    try:
        return Path(snapshot_download(source, allow_patterns=list(files)))
    except Exception as error:  # of several libraries: HTTP, file system, hub
        raise PomonaError(f"{source}: {_hub_problem(error)}") from error


def _hub_problem(error: Exception) -> str:
    kind = type(error).__name__
    if kind == "GatedRepoError":
        return "the hub asks for consent to its licence; accept it there, then run `hf auth login`"
    if kind in ("RepositoryNotFoundError", "HFValidationError", "RevisionNotFoundError"):
        return "the hub has no such model, or it is private; check the spelling, or run `hf auth login`"
    offline = kind == "OfflineModeIsEnabled" or os.environ.get("HF_HUB_OFFLINE", "").upper() in (
        "1",
        "TRUE",
        "YES",
        "ON",
    )
    first = (str(error).strip() or kind).splitlines()[0]
    if offline:
        return "is not in the local hub cache and HF_HUB_OFFLINE is set; unset it, or give a local directory"
    return f"cannot be downloaded ({first}); check the network, or give a local directory"


def _equal(checkpoint: Checkpoint, first: str, second: str) -> bool:
    a, b = checkpoint.array(first), checkpoint.array(second)
    if a.shape != b.shape:
        return False
    return all(np.array_equal(x, y) for x, y in zip(_bf16_chunks(a), _bf16_chunks(b), strict=True))


def _bf16_chunks(array: NDArray[Any]) -> Iterator[NDArray[np.uint16]]:
    flat = array.reshape(-1)
    for start in range(0, math.prod(array.shape), CHUNK):
        chunk = flat[start : start + CHUNK]
        yield chunk if chunk.dtype == np.uint16 else bf16_from_float32(chunk)
