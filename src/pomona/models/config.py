"""The shape of a model: one frozen dataclass for the three families that pomona runs, read from and written
as config.json.

Families (the Hugging Face `model_type`): `llama`, `qwen2` (biases on q, k, v) and `qwen3` (RMSNorm on each
head of q and k). AFM is `qwen3`, see presets.py. All are: pre-RMSNorm, grouped-query attention, SwiGLU,
rotary positions in two halves.

Reading is strict. A key that changes the mathematics in a way that we do not compute is refused by name; keys
that do not change it are listed in `_HARMLESS`; a key that stands in no list is refused too, because nobody
knows what it means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pomona.errors import PomonaError
from pomona.models.model_directory import CONFIG_FILE, read_json_object

ModelType = Literal["llama", "qwen2", "qwen3"]
MODEL_TYPES: tuple[str, ...] = get_args(ModelType)

_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}

# Size -> the largest value that is believed. Far above any model of these families, far below an overflow.
_SIZES = {
    "vocab_size": 1 << 21,
    "hidden_size": 1 << 16,
    "intermediate_size": 1 << 20,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 10,
    "num_key_value_heads": 1 << 10,
    "head_dim": 1 << 10,
    "max_position_embeddings": 1 << 24,
}

# Keys that only training, the Python framework or text generation's defaults (which transformers 4 wrote into
# config.json) look at.
# fmt: off
_HARMLESS = frozenset({
    "_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "tokenizer_class", "torch_dtype",
    "dtype", "use_cache", "use_bfloat16", "_attn_implementation_autoset", "attn_implementation",
    "transformers.js_config", "is_llama_config", "is_decoder", "unsloth_version", "unsloth_fixed",
    "initializer_range", "attention_dropout", "pretraining_tp", "gradient_checkpointing",
    "chunk_size_feed_forward", "id2label", "label2id", "num_labels", "problem_type", "finetuning_task",
    "task_specific_params", "tf_legacy_loss", "output_attentions", "output_hidden_states", "output_scores",
    "return_dict", "return_dict_in_generate", "torchscript", "bad_words_ids", "begin_suppress_tokens",
    "decoder_start_token_id", "diversity_penalty", "do_sample", "early_stopping",
    "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id",
    "forced_eos_token_id", "length_penalty", "max_length", "min_length", "no_repeat_ngram_size",
    "num_beam_groups", "num_beams", "num_return_sequences", "prefix", "remove_invalid_values",
    "repetition_penalty", "sep_token_id", "suppress_tokens", "temperature", "top_k", "top_p", "typical_p",
})
# fmt: on

# Keys that do change the mathematics -> the values at which they do not.
_MUST_BE: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "mlp_bias": (False,),
    "attention_bias": (False,),
    "rope_interleaved": (False,),
    "partial_rotary_factor": (1, None),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({}, None),
}

# Judged by from_hf itself.
# fmt: off
_READ = frozenset(_SIZES) | {
    "model_type", "architectures", "rms_norm_eps", "tie_word_embeddings", "rope_theta", "rope_scaling",
    "rope_parameters", "bos_token_id", "eos_token_id", "pad_token_id", "sliding_window", "use_sliding_window",
    "max_window_layers", "layer_types", "quantization_config",
}
# fmt: on


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's change of the rotary frequencies for long contexts ("rope_type": "llama3")."""

    rope_type: Literal["llama3"]
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class ModelConfig:
    """What the forward pass must know, and the special tokens. Raises PomonaError if it makes no sense."""

    model_type: ModelType
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool
    rope_scaling: RopeScaling | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        problem = _problem(self)
        if problem:
            raise PomonaError(f"model config: {problem}")

    @property
    def qk_norm(self) -> bool:
        """Whether each head of q and k is normalised (one learned scale of head_dim for all heads)."""
        return self.model_type == "qwen3"

    @property
    def qkv_bias(self) -> bool:
        """Whether the q, k and v projections add a bias."""
        return self.model_type == "qwen2"

    @property
    def architecture(self) -> str:
        """The transformers class that loads such a checkpoint."""
        return _ARCHITECTURES[self.model_type]

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the embedding, and of the output matrix where it is one of its own."""
        return self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)

    @property
    def non_embedding_parameters(self) -> int:
        """All other parameters: projections, norms, biases."""
        return sum(math.prod(shape) for shape in self.tensor_shapes().values()) - self.embedding_parameters

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Module name (no ".weight") -> (out, in) of each projection, per layer q k v o gate up down."""
        hidden, ffn = self.hidden_size, self.intermediate_size
        q_out, kv_out = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        layer = {
            "self_attn.q_proj": (q_out, hidden),
            "self_attn.k_proj": (kv_out, hidden),
            "self_attn.v_proj": (kv_out, hidden),
            "self_attn.o_proj": (hidden, q_out),
            "mlp.gate_proj": (ffn, hidden),
            "mlp.up_proj": (ffn, hidden),
            "mlp.down_proj": (hidden, ffn),
        }
        return {
            f"model.layers.{i}.{name}": shape
            for i in range(self.num_hidden_layers)
            for name, shape in layer.items()
        }

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor of the plain checkpoint, in file order; no lm_head if it is tied."""
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocab_size, self.hidden_size)
        }
        linear = self.linear_shapes()
        for i in range(self.num_hidden_layers):
            layer = f"model.layers.{i}"
            shapes[f"{layer}.input_layernorm.weight"] = (self.hidden_size,)
            for name in "qkv":
                module = f"{layer}.self_attn.{name}_proj"
                shapes[f"{module}.weight"] = linear[module]
                if self.qkv_bias:
                    shapes[f"{module}.bias"] = linear[module][:1]
            if self.qk_norm:
                shapes[f"{layer}.self_attn.q_norm.weight"] = (self.head_dim,)
                shapes[f"{layer}.self_attn.k_norm.weight"] = (self.head_dim,)
            shapes[f"{layer}.self_attn.o_proj.weight"] = linear[f"{layer}.self_attn.o_proj"]
            shapes[f"{layer}.post_attention_layernorm.weight"] = (self.hidden_size,)
            for name in ("gate", "up", "down"):
                shapes[f"{layer}.mlp.{name}_proj.weight"] = linear[f"{layer}.mlp.{name}_proj"]
        shapes["model.norm.weight"] = (self.hidden_size,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, self.hidden_size)
        return shapes

    @classmethod
    def from_directory(cls, directory: Path | str) -> ModelConfig:
        """The config of a model directory. Raises PomonaError as `from_hf`, or if it cannot be read."""
        path = Path(directory) / CONFIG_FILE
        return cls.from_hf(read_json_object(path), str(path))

    @classmethod
    def from_hf(cls, data: Mapping[str, Any], source: str) -> ModelConfig:
        """Read a config.json as written by transformers 4 or 5; `source` names it in messages.

        A missing key takes the value that transformers gives it; sizes must stand there. A
        "quantization_config" of our own is left to compression (models/palettized.py), any other is refused.
        Raises PomonaError, one line, with the key.
        """
        try:
            return cls(**_read(data))
        except _RefusedError as refused:
            raise PomonaError(f"{source}: {refused}") from refused
        except PomonaError as error:
            raise PomonaError(f"{source}: {str(error).removeprefix('model config: ')}") from error

    def to_hf(self) -> dict[str, Any]:
        """The config.json, spelled as by transformers 4, which version 5 and other programs read too."""
        eos = self.eos_token_ids
        config: dict[str, Any] = {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            **{name: getattr(self, name) for name in _SIZES},
            "hidden_act": "silu",
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": None,
            "tie_word_embeddings": self.tie_word_embeddings,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": None if not eos else eos[0] if len(eos) == 1 else list(eos),
            "pad_token_id": self.pad_token_id,
            "torch_dtype": "bfloat16",
            "use_cache": True,
        }
        if self.rope_scaling is not None:
            config["rope_scaling"] = dict(vars(self.rope_scaling))
        if self.model_type == "llama":
            config["mlp_bias"] = False
        else:
            config |= {"use_sliding_window": False, "sliding_window": None}
        if self.qkv_bias:
            del config["attention_bias"]  # qwen2 has its biases without being told
        return config


class _RefusedError(Exception):
    """What is wrong with a config and what to do, still without the name of the file."""


def _read(data: Mapping[str, Any]) -> dict[str, Any]:
    model_type = data.get("model_type")
    if model_type not in MODEL_TYPES:
        raise _RefusedError(
            f"model_type {model_type!r} is not supported; pomona runs {', '.join(MODEL_TYPES)}"
        )
    for key, allowed in _MUST_BE.items():
        if key == "attention_bias" and model_type == "qwen2":
            continue  # transformers does not look at it there: q, k and v always have biases
        if key in data and not any(_same(data[key], value) for value in allowed):
            raise _RefusedError(
                f"{key} = {data[key]!r} is not supported, only {allowed[0]!r}; use another model"
            )
    unknown = sorted(set(data) - _READ - _HARMLESS - set(_MUST_BE))
    if unknown:
        raise _RefusedError(
            f"does not know the key {unknown[0]!r}, which may change what the model computes; "
            "if it does not, remove it from the file"
        )
    architectures = data.get("architectures")
    if architectures and architectures != [_ARCHITECTURES[model_type]]:
        raise _RefusedError(
            f"architectures {architectures!r} is not supported, only {_ARCHITECTURES[model_type]}"
        )
    quantization = data.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
        if method != "palettized":
            raise _RefusedError(
                f"quantization method {method!r} is not supported; use the 16-bit form of the model"
            )
    sizes = {name: _size(data, name) for name in _SIZES if name not in ("num_key_value_heads", "head_dim")}
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    # transformers' defaults for these two are numbers of one model in the qwen families, so there they must
    # be told.
    if model_type == "llama" or data.get("num_key_value_heads", 0) is None:
        sizes["num_key_value_heads"] = _size(data, "num_key_value_heads", default=heads)
    else:
        sizes["num_key_value_heads"] = _size(data, "num_key_value_heads")
    if model_type == "qwen3":
        sizes["head_dim"] = _size(data, "head_dim")
    else:
        if data.get("head_dim") is None and (heads == 0 or hidden % heads):
            raise _RefusedError(
                f"hidden_size {hidden} is not divisible by {heads} heads and there is no head_dim; add it"
            )
        sizes["head_dim"] = _size(data, "head_dim", default=hidden // max(heads, 1))
    _check_sliding_window(data, model_type, sizes["num_hidden_layers"])
    rope_theta, rope_scaling = _read_rope(data)
    default_bos, default_eos = (1, 2) if model_type == "llama" else (None, None)
    pad = _token_id("pad_token_id", data.get("pad_token_id"))
    return {
        "model_type": model_type,
        **sizes,
        "rope_theta": rope_theta,
        "rope_scaling": rope_scaling,
        "rms_norm_eps": _number(data, "rms_norm_eps", default=1e-6),
        "tie_word_embeddings": _flag(data, "tie_word_embeddings"),
        "bos_token_id": _token_id("bos_token_id", data.get("bos_token_id", default_bos)),
        "eos_token_ids": _token_ids("eos_token_id", data.get("eos_token_id", default_eos)),
        "pad_token_id": None if pad == -1 else pad,  # -1 is how the first Llama said "none"
    }


def _read_rope(data: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """transformers 4: rope_theta and rope_scaling; 5: rope_parameters, which holds both."""
    found: list[tuple[str, float, RopeScaling | None]] = []
    if data.get("rope_parameters") is not None:
        parameters = _mapping(data, "rope_parameters")
        theta = _number(
            parameters, "rope_theta", default=data.get("rope_theta", 10_000.0), where="rope_parameters."
        )
        found.append(("rope_parameters", theta, _read_scaling(parameters, "rope_parameters")))
    if not found or data.get("rope_theta") is not None or data.get("rope_scaling") is not None:
        theta = _number(data, "rope_theta", default=found[0][1] if found else 10_000.0)
        scaling = found[0][2] if found else None
        if data.get("rope_scaling") is not None:
            scaling = _read_scaling(_mapping(data, "rope_scaling"), "rope_scaling")
        found.append(("rope_theta/rope_scaling", theta, scaling))
    if any(entry[1:] != found[0][1:] for entry in found):
        raise _RefusedError(
            "rope_parameters and rope_theta/rope_scaling contradict each other; keep the right ones"
        )
    return found[0][1], found[0][2]


def _read_scaling(data: Mapping[str, Any], key: str) -> RopeScaling | None:
    kind = data.get("rope_type", data.get("type", "default"))
    if "type" in data and data["type"] != kind:
        raise _RefusedError(
            f"{key} has both rope_type {kind!r} and type {data['type']!r}; keep the right one"
        )
    if kind not in ("default", "llama3"):
        raise _RefusedError(
            f"{key} of type {kind!r} is not supported, only 'default' and 'llama3'; use another model"
        )
    if not _same(data.get("partial_rotary_factor", 1), 1):
        raise _RefusedError(
            f"{key}.partial_rotary_factor = {data['partial_rotary_factor']!r} is not supported, only 1"
        )
    numbers = ("factor", "low_freq_factor", "high_freq_factor")
    allowed = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    if kind == "llama3":
        allowed |= {*numbers, "original_max_position_embeddings"}
    unknown = sorted(set(data) - allowed)
    if unknown:
        raise _RefusedError(
            f"{key} of type {kind!r} has the unknown key {unknown[0]!r}; remove it if it means nothing"
        )
    if kind == "default":
        return None
    factor, low, high = (_number(data, name, where=f"{key}.") for name in numbers)
    original = _size(data, "original_max_position_embeddings", where=f"{key}.")
    return RopeScaling("llama3", factor, low, high, original)


def _check_sliding_window(data: Mapping[str, Any], model_type: str, layers: int) -> None:
    """Qwen configs carry a window that is switched off; one that is on for any layer is refused."""
    kinds = data.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, (list, tuple)) or len(kinds) != layers:
            raise _RefusedError(
                f"layer_types does not name the kind of each of the {layers} layers; get the file again"
            )
        other = sorted({str(kind) for kind in kinds} - {"full_attention"})
        if other:
            raise _RefusedError(
                f"layers of the type {other[0]!r} are not supported, only full_attention; use another model"
            )
        return
    window = data.get("sliding_window")
    # Llama never has a window; in Qwen it needs the switch, and starts at layer max_window_layers (28 if not
    # told).
    on = (
        window is not None
        if model_type == "llama"
        else window is not None and _flag(data, "use_sliding_window")
    )
    if on and (model_type == "llama" or _size(data, "max_window_layers", default=28, least=0) < layers):
        raise _RefusedError(
            f"a sliding window of {window!r} tokens is not supported; use a model with full attention"
        )


def _problem(c: ModelConfig) -> str | None:
    """What makes the values impossible, if anything does."""
    if c.model_type not in MODEL_TYPES:
        return f"model_type {c.model_type!r} is not supported; pomona runs {', '.join(MODEL_TYPES)}"
    for name, most in _SIZES.items():
        if type(getattr(c, name)) is not int or not 1 <= getattr(c, name) <= most:
            return f"{name} = {getattr(c, name)!r} must be a whole number from 1 to {most}"
    if c.num_attention_heads % c.num_key_value_heads:
        return f"{c.num_attention_heads} heads cannot share {c.num_key_value_heads} key/value heads evenly"
    if c.head_dim % 2:
        return f"head_dim = {c.head_dim} must be even, because rotary positions turn pairs"
    if not 0 < c.rms_norm_eps < 0.1:
        return f"rms_norm_eps = {c.rms_norm_eps!r} must lie between 0 and 0.1"
    if not 1 <= c.rope_theta <= 1e15:
        return f"rope_theta = {c.rope_theta!r} must lie between 1 and 1e15"
    s = c.rope_scaling
    if s is not None:
        if not (1 <= s.factor <= 1e6 and 0 < s.low_freq_factor < s.high_freq_factor <= 1e6):
            return "rope_scaling must have factor >= 1 and 0 < low_freq_factor < high_freq_factor"
        if not 1 <= s.original_max_position_embeddings <= _SIZES["max_position_embeddings"]:
            return f"original_max_position_embeddings = {s.original_max_position_embeddings} is out of range"
    for name, token in (
        ("bos_token_id", c.bos_token_id),
        ("pad_token_id", c.pad_token_id),
        *(("eos_token_id", eos) for eos in c.eos_token_ids),
    ):
        if token is not None and not 0 <= token < c.vocab_size:
            return f"{name} = {token} lies outside the vocabulary of {c.vocab_size} tokens"
    return None


def _size(
    data: Mapping[str, Any], key: str, *, default: int | None = None, least: int = 1, where: str = ""
) -> int:
    value = data.get(key)
    if value is None:
        value = default
    if value is None:
        raise _RefusedError(f"has no {where}{key}; it is not a complete config of its model_type")
    if type(value) is not int or value < least:
        raise _RefusedError(f"{where}{key} = {value!r} must be a whole number of at least {least}")
    return value


def _number(data: Mapping[str, Any], key: str, *, default: float | None = None, where: str = "") -> float:
    value = data.get(key)
    if value is None:
        value = default
    if value is None:
        raise _RefusedError(f"has no {where}{key}; it is not a complete config of its model_type")
    if type(value) not in (int, float) or not abs(value) <= 1e30:  # so that NaN is refused as well
        raise _RefusedError(f"{where}{key} = {value!r} must be a number")
    return float(value)


def _flag(data: Mapping[str, Any], key: str) -> bool:
    value = data.get(key, False)
    if not isinstance(value, bool):
        raise _RefusedError(f"{key} = {value!r} must be true or false")
    return value


def _mapping(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = data[key]
    if not isinstance(value, Mapping):
        raise _RefusedError(f"{key} = {value!r} must be an object")
    return value


def _token_id(key: str, value: Any) -> int | None:
    if value is not None and type(value) is not int:
        raise _RefusedError(f"{key} = {value!r} must be a token number")
    return value


def _token_ids(key: str, value: Any) -> tuple[int, ...]:
    ids = list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]
    if not all(type(token) is int for token in ids):
        raise _RefusedError(f"{key} = {value!r} must be a token number or a list of them")
    return tuple(dict.fromkeys(ids))


def _same(value: Any, allowed: Any) -> bool:
    """Equality that does not take False for 0 or 1.0 for True."""
    return bool(value == allowed) and isinstance(value, bool) == isinstance(allowed, bool)
