"""A model directory as a transformers model to train, with or without an adapter, and back into a directory.

A palettised base is de-quantised: what is trained stands on the weights that the runtime computes with.

Shape letters: N outputs, K inputs, R rank.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pomona.compression.training.network import read_weights
from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.model_directory import (
    CONFIG_FILE,
    LICENCE_FILES,
    PROVENANCE_FILE,
    TOKENIZER_FILES,
    WEIGHTS_FILE,
    ModelDirectoryWriter,
    copy_files,
    write_json,
)
from pomona.models.palettized import describe
from pomona.models.safetensors_file import bf16_from_float32, write_bf16_file
from pomona.runtime.adapter_file import CONFIG_FILE as ADAPTER_CONFIG_FILE
from pomona.runtime.adapter_file import read_adapter
from pomona.runtime.adapter_pairs import pairs_of, with_rank
from pomona.runtime.adapter_writer import Pair, write_adapter
from pomona.runtime.model import ADAPTERS_FOLDER, RECOVERY

# Before transformers and TRL are imported anywhere: nothing is asked of a hub, nothing is reported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ADAPTER = "default"


@dataclass(frozen=True)
class Start:
    """Where an adapter begins: with the values of one that is there, or with none (it does nothing then)."""

    name: str
    pairs: Mapping[str, Pair]
    scale: float  # alpha / rank


def quiet_libraries() -> None:
    """Progress bars and remarks of the libraries are not ours to show; errors stay."""
    import warnings

    import datasets
    import transformers

    for library in (transformers, datasets):
        library.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", module=r"(transformers|trl|peft|torch)\..*")


def load_config(directory: Path) -> Any:
    """The transformers config of a model directory, without its quantisation."""
    from transformers import CONFIG_MAPPING

    raw = ModelConfig.from_directory(directory).to_hf()
    return CONFIG_MAPPING[raw["model_type"]].from_dict({**raw, "torch_dtype": "float32"})


def load_weights(model: nn.Module, directory: Path, *, head: bool = True) -> None:
    """Fills a causal model, or (head False) a network around its backbone, in float32. PomonaError for a
    tensor that is missing."""
    weights = read_weights(directory, head=head)
    known = set(model.state_dict())
    missing = {name for name in known if name.startswith("model.")} - set(weights)
    if missing:
        raise PomonaError(f"{directory}: has no tensor {min(missing)!r}; get the model again")
    fitting = {name: torch.from_numpy(array) for name, array in weights.items() if name in known}
    model.load_state_dict(fitting, strict=False)


def load_causal(directory: Path, dropout: float = 0.0) -> Any:
    """AutoModelForCausalLM of a model directory in float32, with dropout on its residual branches."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    with no_init_weights():
        model = AutoModelForCausalLM.from_config(load_config(directory), dtype=torch.float32)
    load_weights(model, directory)
    model.tie_weights()
    add_dropout(model, dropout)
    return model


def add_dropout(model: nn.Module, share: float) -> None:
    """Dropout on what attention and feed-forward add to the residual stream, in training alone.

    The report says 0.1 and not where; this is where AXLearn's layers have it. transformers' models of these
    families have no such place, so it is hooked on.
    """
    if share == 0.0:
        return

    def dropped(module: nn.Module, _inputs: Any, output: Any) -> Any:
        if not module.training:
            return output
        first, *rest = output if isinstance(output, tuple) else (output,)
        first = nn.functional.dropout(first, share)
        return (first, *rest) if isinstance(output, tuple) else first

    found = [m for name, m in model.named_modules() if name.rpartition(".")[2] in ("self_attn", "mlp")]
    if not found:
        raise PomonaError("dropout: the model has no layers of the known form; give dropout 0")
    for module in found:
        module.register_forward_hook(dropped)


def adapter_start(directory: Path, given: Path | None, rank: int, seed: int) -> Start | None:
    """Of the adapter that is `given`, or of the base's recovery adapter, in this rank; None without one.

    One adapter runs at a time: one that begins as the recovery adapter keeps what that gave back.
    """
    path = given
    if path is None:
        path = directory / ADAPTERS_FOLDER / RECOVERY
        if not (path / ADAPTER_CONFIG_FILE).is_file():
            return None
    config = ModelConfig.from_directory(directory)
    file = read_adapter(path, config, describe(directory).fingerprint)
    if set(file.scales) != set(config.linear_shapes()):
        if given is None:
            return None
        raise PomonaError(f"{path}: leaves projections out; start from an adapter of all seven")
    rng = np.random.default_rng(seed)
    pairs = {name: with_rank(pair, rank, rng) for name, pair in pairs_of(file).items()}
    return Start(path.name, pairs, next(iter(file.scales.values())))


def with_adapter(
    model: Any,
    rank: int,
    alpha: float | None,
    start: Start | None,
    *,
    task: str | None = "CAUSAL_LM",
    save: Any = None,
) -> Any:
    """The model with a LoRA adapter on all seven projections, whose base is frozen. save: names of modules
    that are trained whole beside it."""
    from peft import LoraConfig, get_peft_model

    alpha = start.scale * rank if start is not None else 2.0 * rank if alpha is None else alpha
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if name.endswith("_proj")}
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=sorted(names),
        task_type=task,
        modules_to_save=save,
    )
    model.name_or_path = ""  # else PEFT asks for the base's config on a hub
    adapted = get_peft_model(model, config)
    if start is not None:
        set_pairs(adapted, start.pairs)
    return adapted


def get_pairs(model: Any, adapter: str = ADAPTER) -> dict[str, Pair]:
    """A [R, K] and B [N, R] of every projection in float32, by the module's name in a causal model."""
    found: dict[str, Pair] = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and adapter in module.lora_A:
            plain = _plain(name)
            found[plain] = (
                module.lora_A[adapter].weight.detach().float().cpu().numpy().copy(),
                module.lora_B[adapter].weight.detach().float().cpu().numpy().copy(),
            )
    return found


def set_pairs(model: Any, pairs: Mapping[str, Pair], adapter: str = ADAPTER) -> None:
    """Puts values into the adapter. PomonaError: a projection that the model or `pairs` lacks."""
    left = dict(pairs)
    with torch.no_grad():
        for name, module in model.named_modules():
            if hasattr(module, "lora_A") and adapter in module.lora_A:
                if (pair := left.pop(_plain(name), None)) is None:
                    raise PomonaError(
                        f"the adapter has nothing for {_plain(name)}; use one of all projections"
                    )
                module.lora_A[adapter].weight.copy_(torch.from_numpy(pair[0]))
                module.lora_B[adapter].weight.copy_(torch.from_numpy(pair[1]))
    if left:
        raise PomonaError(f"the adapter is for {min(left)}, which the model does not have")


def _plain(name: str) -> str:
    """base_model.model.model.layers.0.mlp.up_proj -> model.layers.0.mlp.up_proj."""
    return "model." + name[name.index("layers.") :]


def scale_of(model: Any, adapter: str = ADAPTER) -> float:
    config = model.peft_config[adapter]
    return float(config.lora_alpha / config.r)


def save_adapter(target: Path, model: Any, record: Mapping[str, Any], *, overwrite: bool = False) -> Path:
    """Writes the adapter as a PEFT directory with its pomona.json."""
    return write_adapter(target, get_pairs(model), scale=scale_of(model), record=record, overwrite=overwrite)


def save_model(
    target: Path, model: nn.Module, base: Path, record: Mapping[str, Any], *, overwrite: bool = False
) -> Path:
    """Writes all weights as a bf16 model directory with the tokenizer of `base`."""
    config = ModelConfig.from_directory(base)
    state = model.state_dict()
    with ModelDirectoryWriter(target, overwrite=overwrite) as writer:
        write_json(writer.path / CONFIG_FILE, config.to_hf())
        copy_files(base, writer.path, (*TOKENIZER_FILES, *LICENCE_FILES))
        write_json(writer.path / PROVENANCE_FILE, dict(record))
        write_bf16_file(
            writer.path / WEIGHTS_FILE,
            config.tensor_shapes(),
            bf16_reader(state),
            source="trained",
            label="weights",
        )
    return writer.target


def bf16_reader(state: Mapping[str, Tensor]) -> Callable[[str], Iterator[NDArray[Any]]]:
    def read(name: str) -> Iterator[NDArray[Any]]:
        yield bf16_from_float32(state[name].detach().float().cpu().numpy())

    return read
