"""A model for the server tier: a plain bf16 Hugging Face directory with its adapters as PEFT directories.

What runs compressed on a device runs on a distributed engine with the same weights (de-quantised) and the
very same adapters (AFM report, section 5: one base, adapters swapped per request). `vllm_command` gives the
model ids that `pomona serve` has, so that a client changes nothing but the address.

    exported = export_model(model, Path("server-model"))
    print(vllm_command(exported))
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pomona.adapters import store
from pomona.adapters.export import write_directory
from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.export import plain_bytes, write_plain
from pomona.models.model_directory import ModelDirectoryWriter, Progress
from pomona.models.palettized import describe
from pomona.runtime.adapter_file import WEIGHTS_FILE, read_adapter
from pomona.runtime.model import ADAPTERS_FOLDER, BASE, RECOVERY

# What vLLM's --max-lora-rank can be (vllm.config.lora).
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True)
class ExportedModel:
    """What was written. `adapters`: name -> rank. `name`: the model's own, which its ids begin with."""

    directory: Path
    name: str
    adapters: dict[str, int]


def export_model(
    model: Path,
    target: Path,
    *,
    names: Sequence[str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    finish: Callable[[Path], None] | None = None,
) -> ExportedModel:
    """Write `model` in bf16 to `target`, and its adapters to `target`/adapters.

    names: the adapters to take, all by default. `recovery`, where there is one, always comes along: without
    it the compressed model would be another one. The records of the copies name the written model as their
    base, so that pomona loads the directory too. finish: may add files to the directory, whose path it gets,
    before it is whole; what it raises stops the export.

    Raises PomonaError, and leaves no half of it: no sound model, no such adapter, one that the runtime
    would refuse, target exists, disk full.
    """
    there = store.installed_names(model)
    chosen = there if names is None else sorted({*names, *({RECOVERY} & set(there))})
    mark, config = describe(model).fingerprint, ModelConfig.from_directory(model)
    directories = {name: store.find(model, name) for name in chosen}
    ranks = {}
    need = plain_bytes(model)
    for name, directory in directories.items():
        file = read_adapter(directory, config, mark)
        store.check_values(file)
        ranks[name] = file.rank
        need += (directory / WEIGHTS_FILE).stat().st_size
    with ModelDirectoryWriter(target, overwrite=overwrite, need_bytes=need) as writer:
        write_plain(model, writer.path, progress=progress)
        written = describe(writer.path).fingerprint
        for name, directory in directories.items():
            folder = writer.path / ADAPTERS_FOLDER / name
            folder.mkdir(parents=True)
            write_directory(folder, model, directory, written)
        if finish is not None:
            finish(writer.path)
    return ExportedModel(writer.target, model.resolve().name, ranks)


def vllm_command(exported: ExportedModel) -> str:
    """The command that serves it with vLLM under the model ids of `pomona serve`.

    PomonaError for an adapter whose rank vLLM does not take.
    """
    directory, name, adapters = exported.directory, exported.name, exported.adapters
    ids = [f"{name}:{BASE}"] if RECOVERY in adapters else [name, f"{name}:{BASE}"]
    words = ["vllm", "serve", str(directory), "--dtype", "bfloat16", "--served-model-name", *ids]
    if adapters:
        highest = max(adapters.values())
        rank = next((rank for rank in VLLM_RANKS if rank >= highest), None)
        if rank is None:
            raise PomonaError(
                f"{directory}: has an adapter of rank {highest}, vLLM takes at most {VLLM_RANKS[-1]}; "
                "train it with a lower rank"
            )
        words += ["--enable-lora", "--max-loras", str(len(adapters)), "--max-lora-rank", str(rank)]
        words.append("--lora-modules")
        for adapter in adapters:
            path = directory / ADAPTERS_FOLDER / adapter
            if adapter == RECOVERY:
                words.append(f"{name}={path}")  # the model's name alone means this adapter
            words.append(f"{name}:{adapter}={path}")
    return shlex.join(words)
