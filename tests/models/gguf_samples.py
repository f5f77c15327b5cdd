"""Small GGUF files for the tests, written with the `gguf` package: a peer of our own reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pomona.models.gguf_tokenizer import convert_tokenizer
from pomona.models.tokenizer import Tokenizer

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, FFN, LAYERS = 4, 2, 16, 64, 96, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["t h", "th e", "Ġ the", "Ġ a", "i n", "a n", "an d", "Ġ and", "1 2"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = ["▁the", "▁cat", "▁a", "▁at", "at", "th", "▁c", "▁t", "▁th", "he", "▁▁", "1", "▁", *LETTERS, "é"]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def byte_letters() -> dict[str, int]:
    """The 256 letters of byte-level BPE and the bytes that they stand for (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def byte_level_metadata(pre: str | None = "smollm") -> dict[str, Any]:
    """Tokenizer metadata of a byte-level BPE with three control tokens and nine merges."""
    tokens = [*SPECIAL, *byte_letters(), *(merge.replace(" ", "") for merge in MERGES)]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL] * len(SPECIAL) + [NORMAL] * (len(tokens) - len(SPECIAL)),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": np.uint32(1),
        "tokenizer.ggml.eos_token_id": np.uint32(2),
        "tokenizer.ggml.unknown_token_id": np.uint32(0),
        "tokenizer.ggml.padding_token_id": np.uint32(2),
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
    }
    return {key: value for key, value in metadata.items() if value is not None}


def tokenizer_metadata(pre: str | None = "smollm", **changes: Any) -> dict[str, Any]:
    """The same as GgufFile would give it; a change of None takes the key away."""
    values = byte_level_metadata(pre) | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in values.items()}
    plain["tokenizer.ggml.token_type"] = np.array(plain["tokenizer.ggml.token_type"], np.int32)
    return {key: value for key, value in plain.items() if value is not None}


def sentence_piece_metadata(**changes: Any) -> dict[str, Any]:
    """Tokenizer metadata of a SentencePiece BPE with byte fallback, as GgufFile would give it."""
    values: dict[str, Any] = {
        "model": "llama",
        "tokens": ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES, "<tool>"],
        "token_type": [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(PIECES) + [USER_DEFINED],
        "scores": [0.0] * 259 + [-float(rank) for rank in range(len(PIECES))] + [0.0],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    values |= {
        "token_type": np.array(values["token_type"], np.int32),
        "scores": np.array(values["scores"], np.float32),
    }
    values |= changes
    return {f"tokenizer.ggml.{name}": value for name, value in values.items() if value is not None}


def load_tokenizer(values: Mapping[str, Any], directory: Path) -> Tokenizer:
    """Convert the metadata, write the files, and read them as a model directory."""
    convert_tokenizer(values, "sample.gguf", max_length=256).write(directory)
    return Tokenizer.from_directory(directory)


def model_metadata(architecture: str = "llama") -> dict[str, Any]:
    """The metadata of a two-layer model of the sizes above, tokenizer included."""
    own = {
        "block_count": np.uint32(LAYERS),
        "context_length": np.uint32(256),
        "embedding_length": np.uint32(HIDDEN),
        "feed_forward_length": np.uint32(FFN),
        "attention.head_count": np.uint32(HEADS),
        "attention.head_count_kv": np.uint32(KV_HEADS),
        "attention.key_length": np.uint32(HEAD_DIM),
        "attention.value_length": np.uint32(HEAD_DIM),
        "attention.layer_norm_rms_epsilon": np.float32(1e-5),
        "rope.freq_base": np.float32(100_000),
        "rope.dimension_count": np.uint32(HEAD_DIM),
    }
    head: dict[str, Any] = {"general.architecture": architecture, "general.name": "sample"}
    return {**head, **{f"{architecture}.{key}": value for key, value in own.items()}, **byte_level_metadata()}


def model_tensors(
    architecture: str = "llama", *, tied: bool = True, seed: int = 0
) -> dict[str, NDArray[np.float32]]:
    """Random weights by GGUF name, in the row-major shapes of a checkpoint."""
    vocabulary = len(byte_level_metadata()["tokenizer.ggml.tokens"])
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocabulary, HIDDEN),
        "output_norm.weight": (HIDDEN,),
    }
    if not tied:
        shapes["output.weight"] = (vocabulary, HIDDEN)
    for layer in range(LAYERS):
        block = {
            "attn_norm.weight": (HIDDEN,),
            "attn_q.weight": (q, HIDDEN),
            "attn_k.weight": (kv, HIDDEN),
            "attn_v.weight": (kv, HIDDEN),
            "attn_output.weight": (HIDDEN, q),
            "ffn_norm.weight": (HIDDEN,),
            "ffn_gate.weight": (FFN, HIDDEN),
            "ffn_up.weight": (FFN, HIDDEN),
            "ffn_down.weight": (HIDDEN, FFN),
        }
        if architecture == "qwen2":
            block |= {"attn_q.bias": (q,), "attn_k.bias": (kv,), "attn_v.bias": (kv,)}
        if architecture == "qwen3":
            block |= {"attn_q_norm.weight": (HEAD_DIM,), "attn_k_norm.weight": (HEAD_DIM,)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    random = np.random.default_rng(seed)
    return {name: random.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, NDArray[np.float32]],
    *,
    kind: str = "F32",
    kinds: Mapping[str, str] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Write a file, matrices as `kind` (single tensors as `kinds` says, vectors as F32), and return what a
    reader should see: the values after quantisation, by GGUF name."""
    import gguf

    architecture = str(metadata.get("general.architecture", "none"))
    writer = gguf.GGUFWriter(path, architecture)
    if "general.architecture" not in metadata:
        writer.kv_data[0].pop("general.architecture")
    for key, value in metadata.items():
        if key != "general.architecture":
            _add(writer, key, value)
    seen = {}
    for name, values in tensors.items():
        wanted = (kinds or {}).get(name, kind if values.ndim > 1 else "F32")
        quantization = gguf.GGMLQuantizationType[wanted]
        stored = gguf.quants.quantize(values, quantization)
        seen[name] = np.asarray(gguf.quants.dequantize(stored, quantization), np.float32).reshape(
            values.shape
        )
        writer.add_tensor(name, stored, raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return seen


def _add(writer: Any, key: str, value: Any) -> None:
    adders: dict[type, Callable[[str, Any], None]] = {
        str: writer.add_string,
        bool: writer.add_bool,
        list: writer.add_array,
        int: writer.add_uint32,
        float: writer.add_float32,
        np.uint32: lambda key, number: writer.add_uint32(key, int(number)),
        np.int32: lambda key, number: writer.add_int32(key, int(number)),
        np.float32: lambda key, number: writer.add_float32(key, float(number)),
    }
    adders[type(value)](key, value)
