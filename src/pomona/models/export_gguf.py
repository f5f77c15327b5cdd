"""Export of a plain model directory as a GGUF file, for llama.cpp and everything that is built on it.

    export_gguf("OUT/model", "model.gguf")

Matrices are written in bfloat16 (as they are stored) or float16, norms in float32. The names, and the order
of a Llama's query and key rows, are GGUF's. Tokenizers of the SentencePiece kind (BPE with byte fallback,
which `pomona data tokenizer` trains) are written as llama.cpp's "llama" kind; others are refused, for what
cuts their text is a rule that GGUF only names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.import_hf import check_tensors
from pomona.models.model_directory import CONFIG_FILE, Progress, read_json_object
from pomona.models.safetensors_file import Checkpoint, float32_from_bf16

ARCHITECTURES = ("llama", "qwen3")
SPACE = "▁"
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
_LABEL = "export GGUF"


def export_gguf(
    source: Path | str,
    target: Path | str,
    *,
    weights: Literal["bf16", "f16"] = "bf16",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write the 16-bit model directory `source` to the file `target` and give its path.

    PomonaError: no plain model directory, a family or tokenizer that is not written, a value too large for
    float16, `target` there already and not `overwrite`.
    """
    source, target = Path(source), Path(target).expanduser()
    raw = read_json_object(source / CONFIG_FILE)
    config = ModelConfig.from_hf(raw, str(source / CONFIG_FILE))
    if raw.get("quantization_config") is not None:
        raise PomonaError(f"{source}: is compressed; export its 16-bit form")
    if config.model_type not in ARCHITECTURES or config.rope_scaling is not None:
        raise PomonaError(
            f"{source}: only {' and '.join(ARCHITECTURES)} without scaled rotary frequencies are "
            "written as GGUF"
        )
    if target.exists() and not overwrite:
        raise PomonaError(f"{target}: already exists; choose another name, or ask to overwrite it")
    unfinished = target.with_name(f".{target.name}.part")
    try:
        with Checkpoint(source) as checkpoint:
            check_tensors(checkpoint, config)
            _write(config, checkpoint, source, unfinished, weights, progress)
        unfinished.replace(target)
    except OSError as error:
        raise PomonaError(f"{target}: cannot be written ({error.strerror}); check path and space") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return target


def _write(
    config: ModelConfig,
    checkpoint: Checkpoint,
    source: Path,
    path: Path,
    weights: Literal["bf16", "f16"],
    progress: Progress | None,
) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, config.model_type)
    writer.add_name(source.name)
    add_shape(writer, config)
    kinds = gguf.LlamaFileType
    writer.add_file_type(kinds.MOSTLY_BF16 if weights == "bf16" else kinds.MOSTLY_F16)
    _add_tokenizer(writer, source, config)
    shapes, names = config.tensor_shapes(), gguf_names(config)
    bf16 = gguf.GGMLQuantizationType.BF16
    for name, shape in shapes.items():
        if len(shape) == 2 and weights == "bf16":
            rows, columns = shape
            writer.add_tensor_info(
                names[name], [rows, 2 * columns], np.dtype(np.uint8), 2 * math.prod(shape), raw_dtype=bf16
            )
        else:
            kind = np.dtype(np.float16 if len(shape) == 2 else np.float32)
            writer.add_tensor_info(names[name], shape, kind, math.prod(shape) * kind.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, (name, shape) in enumerate(shapes.items()):
        if progress is not None:
            progress(_LABEL, done, len(shapes))
        array = checkpoint.array(name)
        if config.model_type == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            array = array[interleaved_rows(shape[0], config.head_dim)]
        writer.write_tensor_data(_stored(array, source, name, matrix=len(shape) == 2, kind=weights))
    writer.close()
    if progress is not None:
        progress(_LABEL, len(shapes), len(shapes))


def _stored(array: NDArray[Any], source: Path, name: str, *, matrix: bool, kind: str) -> NDArray[Any]:
    if array.dtype != np.uint16:
        raise PomonaError(f"{source}: {name} is not bfloat16; bring the model in with `pomona pull` first")
    if matrix and kind == "bf16":
        return np.ascontiguousarray(array).view(np.uint8)
    values = float32_from_bf16(np.ascontiguousarray(array))
    if not matrix:
        return values
    if not float(np.abs(values).max()) <= np.finfo(np.float16).max:
        raise PomonaError(f"{source}: {name} has values too large for float16; write bf16")
    return values.astype(np.float16)


def _add_tokenizer(writer: Any, source: Path, config: ModelConfig) -> None:
    tokens, scores, kinds = sentencepiece_vocabulary(
        read_json_object(source / "tokenizer.json"), str(source), config.vocab_size
    )
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    if config.eos_token_ids:
        writer.add_eos_token_id(config.eos_token_ids[0])
    if config.pad_token_id is not None:
        writer.add_pad_token_id(config.pad_token_id)
    if config.bos_token_id is not None:
        writer.add_bos_token_id(config.bos_token_id)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    template = source / "chat_template.jinja"
    if template.is_file():
        writer.add_chat_template(template.read_text(encoding="utf-8"))


def sentencepiece_vocabulary(
    tokenizer: Mapping[str, Any], where: str, size: int
) -> tuple[list[bytes], list[float], list[int]]:
    """Tokens, scores and kinds of a tokenizer.json of BPE with byte fallback, padded to `size` entries.

    SentencePiece joins the neighbours whose joint piece has the best score; so a piece's score is minus the
    rank of the first merge that makes it. PomonaError for any other kind of tokenizer.
    """
    model = tokenizer.get("model")
    plain = isinstance(model, dict) and model.get("type") == "BPE" and model.get("byte_fallback") is True
    if not plain or SPACE not in json.dumps(tokenizer.get("normalizer"), ensure_ascii=False):
        raise PomonaError(
            f"{where}: only tokenizers of the SentencePiece kind are written as GGUF; use "
            "llama.cpp's converter"
        )
    assert isinstance(model, dict)
    vocabulary: dict[str, int] = model["vocab"]
    special = {str(one["content"]) for one in tokenizer.get("added_tokens", []) if one.get("special")}
    rank: dict[str, int] = {}
    for number, merge in enumerate(model["merges"]):
        first, second = merge.split(" ") if isinstance(merge, str) else merge
        rank.setdefault(first + second, number)
    tokens, scores = [f"<unused{index}>".encode() for index in range(size)], [0.0] * size
    kinds = [_CONTROL] * size  # what no text gives
    last = float(len(model["merges"]))
    for token, index in vocabulary.items():
        if not 0 <= index < size:
            raise PomonaError(
                f"{where}: the token {token[:40]!r} lies outside the vocabulary; get the model again"
            )
        tokens[index] = token.encode("utf-8")
        kinds[index], scores[index] = _NORMAL, -float(rank.get(token, last))
        if token == model.get("unk_token"):
            kinds[index], scores[index] = _UNKNOWN, 0.0
        elif token in special:
            kinds[index], scores[index] = _CONTROL, 0.0
        elif len(token) == 6 and token.startswith("<0x"):
            kinds[index], scores[index] = _BYTE, 0.0
    return tokens, scores, kinds


def add_shape(writer: Any, config: ModelConfig) -> None:
    """A model's sizes as metadata. writer: a gguf.GGUFWriter."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def gguf_names(config: ModelConfig) -> dict[str, str]:
    """Our name of a tensor -> GGUF's."""
    import gguf

    kind = gguf.MODEL_ARCH.LLAMA if config.model_type == "llama" else gguf.MODEL_ARCH.QWEN3
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    return {
        name: f"{names.get_name(stem)}.{suffix}"
        for name in config.tensor_shapes()
        for stem, _, suffix in [name.rpartition(".")]
    }


def interleaved_rows(rows: int, head_dim: int) -> NDArray[np.intp]:
    """For every row in GGUF's order, ours: within a head, 2j and 2j + 1 come from j and j + head_dim/2."""
    half_split = np.arange(rows).reshape(-1, 2, head_dim // 2)
    return np.ascontiguousarray(half_split.swapaxes(1, 2)).reshape(-1)
