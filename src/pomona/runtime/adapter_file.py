"""Reading a PEFT adapter directory: adapter_config.json, adapter_model.safetensors, and our pomona.json.

Only plain LoRA on the seven projections is run. Everything else that a PEFT configuration can ask for changes
the arithmetic and is refused by name; so is an adapter with a tensor too few or too many, or one that was
made for another base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.model_directory import PROVENANCE_FILE, read_json_object
from pomona.models.safetensors_file import SafetensorsFile

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
MAX_RANK = 1024
_MAX_ALPHA = 1e30  # far from the ends of float32, in which the scale is applied
_PREFIX = "base_model.model."

# What each of these must be for the adapter to be plain LoRA; the key's absence is fine.
_REQUIRED: dict[str, tuple[Any, ...]] = {
    "use_rslora": (False, None),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "exclude_modules": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
    "layer_replication": (None,),
    "ensure_weight_tying": (False, None),
    # Other initialisations (pissa, olora, corda, eva, loftq) change the base that the adapter stands on.
    "init_lora_weights": (True, False, None, "gaussian"),
    "megatron_config": (None,),
}
_HARMLESS = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
}


@dataclass(frozen=True)
class AdapterFile:
    """A checked adapter: tensors by module name without PEFT's prefix, and alpha / rank of each."""

    directory: Path
    rank: int
    base_fingerprint: str | None  # None: the adapter does not say what it was made for
    tensors: Mapping[str, tuple[str, NDArray[Any]]]  # views on a mapped file
    scales: Mapping[str, float]


def read_adapter(directory: Path | str, config: ModelConfig, base_fingerprint: str) -> AdapterFile:
    """Checks a PEFT directory against the base that it is going to run on.

    Raises PomonaError in one line: not LoRA, an option that is not supported, a wrong base (with both
    fingerprints), missing or unexpected tensors, wrong shapes. Whether values are finite is checked where
    they are read: in the native adapter.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise PomonaError(f"{directory}: no such adapter directory; give a PEFT directory")
    source = directory / CONFIG_FILE
    raw = read_json_object(source)
    rank, alpha = _check_options(raw, source)
    made_for = _made_for(directory)
    if made_for is not None and made_for != base_fingerprint:
        raise PomonaError(
            f"{directory}: was made for base {made_for}, this is {base_fingerprint}; train it for this base"
        )
    modules = _modules(raw, config, source)
    file = SafetensorsFile(directory / WEIGHTS_FILE)
    shapes = config.linear_shapes()
    tensors: dict[str, tuple[str, NDArray[Any]]] = {}
    for module in modules:
        rows, columns = shapes[module]
        for part, shape in (("lora_A", (rank, columns)), ("lora_B", (rows, rank))):
            name = f"{module}.{part}.weight"
            info = file.tensors.get(_PREFIX + name)
            if info is None:
                raise PomonaError(f"{file.path}: tensor {_PREFIX + name} is missing; save the adapter again")
            if info.shape != shape or info.dtype not in ("BF16", "F16", "F32"):
                raise PomonaError(
                    f"{file.path}: tensor {_PREFIX + name} is {info.dtype} {list(info.shape)}, "
                    f"this base needs a float matrix {list(shape)}; use an adapter of this base"
                )
            tensors[name] = (info.dtype, file.array(_PREFIX + name))
    unexpected = sorted(set(file.tensors) - {_PREFIX + name for name in tensors})
    if unexpected:
        raise PomonaError(
            f"{file.path}: tensor {unexpected[0]!r} belongs to no target module; save the adapter again"
        )
    return AdapterFile(directory, rank, made_for, tensors, dict.fromkeys(modules, alpha / rank))


def _check_options(raw: Mapping[str, Any], source: Path) -> tuple[int, float]:
    if raw.get("peft_type") != "LORA":
        raise PomonaError(
            f"{source}: peft_type {raw.get('peft_type')!r} is not supported; train a LORA adapter"
        )
    for key, allowed in _REQUIRED.items():
        value = raw.get(key)
        if not any(value is a or (type(value) is type(a) and value == a) for a in allowed):
            raise PomonaError(f"{source}: {key} = {value!r} is not supported; train a plain LoRA adapter")
    # PEFT gains options with every version; one that is off changes nothing.
    unknown = sorted(key for key in set(raw) - set(_REQUIRED) - _HARMLESS if raw[key])
    if unknown:
        raise PomonaError(f"{source}: unknown option {unknown[0]!r}; train a plain LoRA adapter")
    rank, alpha = raw.get("r"), raw.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= MAX_RANK:
        raise PomonaError(f"{source}: r = {rank!r} is no rank of 1 .. {MAX_RANK}; save the adapter again")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not abs(alpha) <= _MAX_ALPHA:
        raise PomonaError(f"{source}: lora_alpha = {alpha!r} is no number; save the adapter again")
    return rank, float(alpha)


def _modules(raw: Mapping[str, Any], config: ModelConfig, source: Path) -> list[str]:
    """The modules that the configuration adapts, in the base's order."""
    targets, layers = raw.get("target_modules"), raw.get("layers_to_transform")
    known = sorted({module.rpartition(".")[2] for module in config.linear_shapes()})
    if targets == "all-linear":
        targets = known
    if not isinstance(targets, list) or not targets or not all(isinstance(t, str) for t in targets):
        raise PomonaError(f"{source}: target_modules must be a list of names of {', '.join(known)}")
    chosen = [m for m in config.linear_shapes() if any(m == t or m.endswith(f".{t}") for t in targets)]
    idle = [t for t in targets if not any(m == t or m.endswith(f".{t}") for m in chosen)]
    if idle:
        raise PomonaError(
            f"{source}: target module {idle[0]!r} is no projection; choose from {', '.join(known)}"
        )
    if layers is not None:
        wanted = [layers] if isinstance(layers, int) else layers
        if not isinstance(wanted, list) or not all(type(i) is int for i in wanted):
            raise PomonaError(f"{source}: layers_to_transform must be layer numbers")
        chosen = [m for m in chosen if int(m.split(".")[2]) in wanted]
        if not chosen:
            raise PomonaError(f"{source}: layers_to_transform names no layer of this model")
    return chosen


def _made_for(directory: Path) -> str | None:
    path = directory / PROVENANCE_FILE
    if not path.is_file():
        return None
    value = read_json_object(path).get("base_fingerprint")
    if value is not None and not isinstance(value, str):
        raise PomonaError(f"{path}: base_fingerprint is no text; save the adapter again")
    return value
