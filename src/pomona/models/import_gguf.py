"""GGUF -> a plain bf16 Hugging Face model directory.

The weights of llama, qwen2 and qwen3 models are decoded row block by row block and rounded to bf16 (nearest,
ties to even), so memory stays bounded however large the model is. Everything that can be refused
(architecture, metadata that changes the mathematics, a missing or wrong tensor, an unknown type, the
tokenizer) is refused before a byte is written.

GGUF stores the rows of Llama's query and key projections for interleaved rotary pairs (0,1), (2,3), ...;
Hugging Face pairs row j with row j + head_dim/2. `_half_split_rows` undoes that. Qwen files keep the
half-split order."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.gguf_file import GgufFile
from pomona.models.gguf_tokenizer import GgufTokenizer, convert_tokenizer
from pomona.models.model_directory import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    ModelDirectoryWriter,
    Progress,
    write_json,
)
from pomona.models.safetensors_file import SafetensorsWriter, TensorSpec, aligned_order, bf16_from_float32

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}

_CHUNK_ELEMENTS = 1 << 22  # float32 values in memory at a time: 16 MB, and some temporaries of the decoder

_TOP_TENSORS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER_TENSORS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LAYER_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_ROPE_FACTORS = "rope_freqs.weight"

# Metadata under the architecture's name: read below; harmless; allowed with this one value (which says
# "unused").
_READ_KEYS = {
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "vocab_size",
}
_HARMLESS_KEYS = {"tensor_data_layout", "rope.scaling.finetuned", "rope.scaling.original_context_length"}
_UNUSED_VALUES: dict[str, object] = {
    "expert_count": 0,
    "expert_used_count": 0,
    "attention.causal": True,
    "attention.sliding_window": 0,
    "pooling_type": 0,
    "rope.scale_linear": 1.0,
    "rope.scaling.factor": 1.0,
    "rope.scaling.attn_factor": 1.0,
}


def import_gguf(
    path: Path | str, target: Path | str, *, overwrite: bool = False, progress: Progress | None = None
) -> Path:
    """Write the model of a GGUF file as a bf16 Hugging Face directory at `target` and return its path.

    The directory holds config.json, generation_config.json, model.safetensors and the tokenizer files. It
    appears complete or not at all. `progress` is called with ("importing weights", bytes written, bytes in
    all). Raises PomonaError (file, what is wrong, what to do) for anything that is not a complete model of a
    known kind."""
    path = Path(path)
    with GgufFile(path) as file:
        tokenizer = convert_tokenizer(file.metadata, path, max_length=_context_length(file))
        config = read_config(file, tokenizer)
        specs = aligned_order(
            TensorSpec(name, "BF16", shape) for name, shape in config.tensor_shapes().items()
        )
        _check_tensors(file, config)
        need = sum(spec.nbytes for spec in specs) + len(tokenizer.tokenizer_json) + (1 << 20)
        with ModelDirectoryWriter(Path(target), overwrite=overwrite, need_bytes=need) as writer:
            write_json(writer.path / CONFIG_FILE, config.to_hf())
            write_json(writer.path / "generation_config.json", _generation_config(config))
            tokenizer.write(writer.path)
            _write_weights(file, config, specs, writer.path / WEIGHTS_FILE, progress)
    return writer.target


def read_config(file: GgufFile, tokenizer: GgufTokenizer) -> ModelConfig:
    """The ModelConfig that the metadata of an open GGUF file describes. PomonaError for what is not
    supported."""
    architecture = _architecture(file)
    _check_metadata(file, architecture)
    read = _Reader(file, architecture)
    heads = read.integer("attention.head_count")
    hidden = read.integer("embedding_length")
    head_dim = read.integer("attention.key_length", default=hidden // max(heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        if (value := read.integer(key, default=head_dim)) != head_dim:
            raise read.unsupported(f"{key} {value} where the head size is {head_dim}")
    scaling = file.metadata.get(f"{architecture}.rope.scaling.type", "none")
    if not isinstance(scaling, str) or scaling not in ("none", "linear"):
        raise read.unsupported(f"rope.scaling.type {str(scaling)[:30]!r}")
    theta = read.number("rope.freq_base", default=10_000.0)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise PomonaError(
            f"{file.path}: tensor token_embd.weight is missing; use a file that holds a whole model"
        )
    vocabulary = read.integer("vocab_size", default=tokenizer.vocab_size)
    if not vocabulary == tokenizer.vocab_size == embedding.shape[0]:
        raise PomonaError(
            f"{file.path}: vocab_size {vocabulary}, {tokenizer.vocab_size} tokens and {embedding.shape[0]}"
            " embedding rows do not agree; convert the model again"
        )
    ends = tokenizer.eos_token_ids
    described = {
        "architectures": [ARCHITECTURES[architecture]],
        "model_type": architecture,
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": read.integer("feed_forward_length"),
        "num_hidden_layers": read.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": read.integer("attention.head_count_kv", default=heads),
        "head_dim": head_dim,
        "max_position_embeddings": read.integer("context_length"),
        "rope_theta": theta,
        "rope_scaling": _rope_scaling(file, architecture, theta, head_dim),
        "rms_norm_eps": read.number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "hidden_act": "silu",
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": ends[0] if len(ends) == 1 else list(ends) or None,
        "pad_token_id": tokenizer.pad_token_id,
    }
    try:
        return ModelConfig.from_hf(described, str(file.path))
    except PomonaError as error:
        text = str(error)
        raise PomonaError(text if "; " in text else f"{text}; convert the model again") from error


class _Reader:
    """Typed access to the metadata under the architecture's name."""

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self._file, self._prefix = file, architecture

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._file.metadata.get(f"{self._prefix}.{key}", default)
        if isinstance(value, np.ndarray):
            raise self.unsupported(f"{key} that differs from layer to layer")
        if type(value) is not int or not 0 < value < 1 << 31:
            raise self._wrong(key, value)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._file.metadata.get(f"{self._prefix}.{key}", default)
        if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
            raise self._wrong(key, value)
        return float(
            str(np.float32(value))
        )  # 1e-05, as the original config had it, not 9.999999747378752e-06

    def unsupported(self, what: str) -> PomonaError:
        return PomonaError(
            f"{self._file.path}: {self._prefix} models with {what} are not supported; use another model"
        )

    def _wrong(self, key: str, value: object) -> PomonaError:
        what = "is missing" if value is None else "has an impossible value"
        return PomonaError(
            f"{self._file.path}: metadata {self._prefix}.{key} {what}; convert the model again"
        )


def _architecture(file: GgufFile) -> str:
    """The architecture, after the checks that come before all others: a whole model, of a known kind."""
    metadata = file.metadata
    kind = metadata.get("general.type", "model")
    if not isinstance(kind, str) or kind != "model":
        raise PomonaError(
            f"{file.path}: holds {str(kind)[:30]!r} and not a model; give the file of the model itself"
        )
    parts = metadata.get("split.count", 1)
    if not isinstance(parts, int) or parts > 1:
        raise PomonaError(
            f"{file.path}: is one part of a split model; join the parts first (llama-gguf-split --merge)"
        )
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        shown = repr(architecture[:40]) if isinstance(architecture, str) else "(not named)"
        raise PomonaError(
            f"{file.path}: architecture {shown} is not supported; use a model of {', '.join(ARCHITECTURES)}"
        )
    return architecture


def _context_length(file: GgufFile) -> int:
    return _Reader(file, _architecture(file)).integer("context_length")


def _check_metadata(file: GgufFile, architecture: str) -> None:
    """Refuse metadata that could change the mathematics without our knowing it."""
    for key, value in file.metadata.items():
        if not key.startswith(f"{architecture}."):
            continue
        name = key.removeprefix(f"{architecture}.")
        if name in _UNUSED_VALUES:
            if isinstance(value, np.ndarray | list) or value != _UNUSED_VALUES[name]:
                raise PomonaError(
                    f"{file.path}: {key} is in use, which pomona does not support; use another model"
                )
        elif name not in _READ_KEYS and name not in _HARMLESS_KEYS:
            raise PomonaError(
                f"{file.path}: metadata {key} is not known to pomona; use another model or a newer pomona"
            )


def _rope_scaling(file: GgufFile, architecture: str, theta: float, head_dim: int) -> dict[str, Any] | None:
    """Llama 3.1's rotary scaling. GGUF holds only the factors that come out of it, one per frequency; the
    parameters are those that Llama 3.1 and 3.2 were published with, the largest factor, and the result must
    match the file."""
    if _ROPE_FACTORS not in file.tensors:
        return None
    if architecture != "llama" or file.tensors[_ROPE_FACTORS].shape != (head_dim // 2,):
        raise PomonaError(
            f"{file.path}: {_ROPE_FACTORS} does not fit a {architecture} model; convert the model again"
        )
    file.check_decodable(_ROPE_FACTORS)
    factors = file.dequantize(_ROPE_FACTORS)[0].astype(np.float64)
    if np.all(factors == 1.0):
        return None
    factor, low, high, original = float(np.max(factors)), 1.0, 4.0, 8192
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    # Share of the frequency that stays as it is: all of it for short wavelengths, nothing for long ones.
    kept = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    expected = 1 / (kept + (1 - kept) / max(factor, 1.0))
    if not np.allclose(factors, expected, rtol=1e-3):
        raise PomonaError(
            f"{file.path}: {_ROPE_FACTORS} is no rotary scaling that pomona knows (Llama 3.1's);"
            " import the model from its Hugging Face directory instead"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _gguf_name(name: str) -> str:
    if name in _TOP_TENSORS:
        return _TOP_TENSORS[name]
    match = _LAYER_NAME.fullmatch(name)
    if match is None or match[2] not in _LAYER_TENSORS:
        raise KeyError(
            f"no GGUF name for {name}"
        )  # a tensor that ModelConfig added and this table lacks: our bug
    return f"blk.{match[1]}.{_LAYER_TENSORS[match[2]]}.{match[3]}"


def _check_tensors(file: GgufFile, config: ModelConfig) -> None:
    """Every tensor of the model is there with its shape and a decodable type, and there is no other."""
    expected = {_gguf_name(name): shape for name, shape in config.tensor_shapes().items()}
    for name, shape in expected.items():
        tensor = file.tensors.get(name)
        if tensor is None:
            raise PomonaError(f"{file.path}: tensor {name} is missing; download or convert the file again")
        if tensor.shape != shape:
            raise PomonaError(
                f"{file.path}: tensor {name} has the shape {list(tensor.shape)}, {list(shape)} is expected;"
                " download or convert the file again"
            )
        file.check_decodable(name)
    known = {*expected, _ROPE_FACTORS}
    if surplus := next((name for name in file.tensors if name not in known), None):
        raise PomonaError(
            f"{file.path}: tensor {surplus} is not part of a {config.model_type} model as pomona knows it;"
            " use another model"
        )


def _write_weights(
    file: GgufFile, config: ModelConfig, specs: list[TensorSpec], path: Path, progress: Progress | None
) -> None:
    total, done = sum(spec.nbytes for spec in specs), 0

    def report(count: int) -> None:
        if progress is not None:
            progress("importing weights", count, total)

    report(0)
    with SafetensorsWriter(path, specs, {"format": "pt"}) as writer:  # the marker that transformers asks for
        for spec in specs:
            writer.write_chunks(spec.name, _chunks(file, config, spec))
            done += spec.nbytes
            report(done)


def _chunks(file: GgufFile, config: ModelConfig, spec: TensorSpec) -> Iterator[NDArray[np.uint16]]:
    """bf16 bits of one tensor, a block of rows at a time, in Hugging Face's row order."""
    name = _gguf_name(spec.name)
    rows, columns = (spec.shape[0], spec.shape[1]) if len(spec.shape) == 2 else (1, spec.shape[0])
    order = None
    if config.model_type == "llama" and spec.name.endswith(("q_proj.weight", "k_proj.weight")):
        order = _half_split_rows(rows, config.head_dim)
    step = max(1, _CHUNK_ELEMENTS // columns)
    for start in range(0, rows, step):
        chosen = slice(start, start + step) if order is None else order[start : start + step]
        bits = bf16_from_float32(file.dequantize(name, chosen))
        if ((bits & 0x7F80) == 0x7F80).any():
            raise PomonaError(
                f"{file.path}: tensor {name} holds values that are infinite or no numbers;"
                " download or convert it again"
            )
        yield bits


def _half_split_rows(rows: int, head_dim: int) -> NDArray[np.intp]:
    """For every row in Hugging Face's order, the row of the GGUF tensor: within a head, j and j + head_dim/2
    come from 2j and 2j + 1."""
    interleaved = np.arange(rows).reshape(-1, head_dim // 2, 2)
    return np.ascontiguousarray(interleaved.swapaxes(1, 2)).reshape(-1)


def _generation_config(config: ModelConfig) -> dict[str, Any]:
    ends = config.eos_token_ids
    values = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": ends[0] if len(ends) == 1 else list(ends) or None,
        "pad_token_id": config.pad_token_id,
    }
    return {key: value for key, value in values.items() if value is not None}
