"""The model in torch: a Qwen3ForCausalLM with float32 weights, whole on one device or sharded by FSDP2.

The report shards model and optimizer in float32 and casts forward and backward to bfloat16 (section 3.1).
Weights are put in layer by layer, and a layer is sharded before the next one is made: no process ever holds
more than its share and one layer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, distribute_tensor

from pomona.models.config import ModelConfig

Values = Callable[[str, tuple[int, ...]], NDArray[np.float32]]  # (name, shape) -> the tensor's values


def build_model(
    config: ModelConfig,
    values: Values,
    *,
    mesh: DeviceMesh | None = None,
    compute: torch.dtype = torch.float32,
    checkpoint_activations: bool = False,
) -> Any:
    """The model with `values` in it, on the CPU, or sharded over `mesh` on its devices.

    compute: the type of sharded forward and backward passes (on one device autocast chooses). The embedding
    is tied if the config says so.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

    settings = Qwen3Config.from_dict(config.to_hf())
    settings.use_cache = False
    settings._attn_implementation = "sdpa"
    with torch.device("meta"):
        model = Qwen3ForCausalLM(settings)
    model.to(torch.float32)
    layers = model.model.layers
    for number, layer in enumerate(layers):
        _fill(layer.to_empty(device="cpu"), f"model.layers.{number}", values)
        if mesh is not None:
            _shard(layer, mesh, compute)
    for name in ("embed_tokens", "norm"):
        _fill(getattr(model.model, name).to_empty(device="cpu"), f"model.{name}", values)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    else:
        _fill(model.lm_head.to_empty(device="cpu"), "lm_head", values)
    model.model.rotary_emb = type(model.model.rotary_emb)(config=settings)
    if checkpoint_activations:
        with warnings.catch_warnings():  # renamed in the course of transformers 5; both names work
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable({"use_reentrant": False})
    if mesh is not None:
        _shard(model, mesh, compute)
        # Tells the Trainer that the model owns its placement; it then neither wraps nor moves it.
        model._is_distributed_loading_by_transformers = True
    return model


def shard_module(module: torch.nn.Module, mesh: DeviceMesh | None) -> None:
    """Shard what a loss brings along in parameters, in float32."""
    if mesh is not None and any(True for _ in module.parameters()):
        _shard(module, mesh, torch.float32)


def reshard(model: torch.nn.Module) -> None:
    """After a forward pass without backward pass: FSDP2 keeps the root's whole parameters in between."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def named_tensors(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Name in the checkpoint -> parameter, a tied one once, in the model's order."""
    return {_plain(name): parameter for name, parameter in model.named_parameters()}


def whole(tensor: torch.Tensor) -> NDArray[np.float32]:
    """All values of a tensor that may be sharded, float32. Every process of a sharded one must call this."""
    plain = tensor.detach()
    full = plain.full_tensor() if isinstance(plain, DTensor) else plain
    array: NDArray[np.float32] = full.to("cpu", torch.float32).numpy()
    return array


def put(tensor: torch.Tensor, values: NDArray[np.float32]) -> None:
    """Sets a tensor that may be sharded; each process takes its part of `values`."""
    full = torch.from_numpy(np.array(values, np.float32))
    with torch.no_grad():
        if isinstance(tensor, DTensor):
            part = distribute_tensor(
                full.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None
            )
            tensor.to_local().copy_(part.to_local())
        else:
            tensor.copy_(full)


def values_from(tensors: Mapping[str, Any]) -> Values:
    """What `build_model` needs, out of arrays by name (a checkpoint)."""
    return lambda name, shape: np.asarray(tensors[name], np.float32).reshape(shape)


def _fill(module: torch.nn.Module, prefix: str, values: Values) -> None:
    for name, parameter in module.named_parameters():
        put(parameter, values(f"{prefix}.{name}", tuple(parameter.shape)))


def _shard(module: torch.nn.Module, mesh: DeviceMesh, compute: torch.dtype) -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # Gradients are summed over devices in float32 whatever they were computed in.
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    fully_shard(module, mesh=mesh, mp_policy=policy)


def _plain(name: str) -> str:
    """Without what torch.compile and activation checkpointing put into names."""
    return name.replace("_orig_mod.", "").replace("_checkpoint_wrapped_module.", "")
