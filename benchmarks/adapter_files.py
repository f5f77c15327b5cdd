"""Random rank-16 adapters on all seven projections, as PEFT directories and as GGUF files for llama.cpp.

The values mean nothing; their number, type and places are those of a trained adapter. All adapters are slices
of one series of normal numbers, so that a hundred of them are written at the speed of the disk. The GGUF file
holds the same values in float16, with the rows of q and k in GGUF's order where the base is a Llama.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pomona.models.config import ModelConfig
from pomona.models.safetensors_file import (
    SafetensorsWriter,
    TensorSpec,
    bf16_from_float32,
    float32_from_bf16,
)

RANK, ALPHA = 16, 32
B_DEVIATION = 0.05  # moves the answers clearly and leaves the activations where they were
POOL = 1 << 20

_GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True)
class RandomAdapter:
    """One adapter of a base; the same number gives the same values everywhere."""

    config: ModelConfig
    number: int
    rank: int = RANK

    def tensors(self) -> Iterator[tuple[str, NDArray[np.uint16]]]:
        """(module.lora_A or module.lora_B, bf16 bits [rank, in] or [out, rank]) of every projection."""
        pool = _pool()
        starts = np.random.default_rng([2, self.number])
        for module, (rows, columns) in self.config.linear_shapes().items():
            for part, shape, deviation in (
                ("lora_A", (self.rank, columns), columns**-0.5),
                ("lora_B", (rows, self.rank), B_DEVIATION),
            ):
                size = shape[0] * shape[1]
                start = int(starts.integers(POOL))
                values = np.resize(np.roll(pool, -start) if start + size > POOL else pool[start:], size)
                yield f"{module}.{part}", bf16_from_float32(values * np.float32(deviation)).reshape(shape)

    def write_peft(self, directory: Path) -> Path:
        """Writes the PEFT directory and gives its path."""
        directory.mkdir(parents=True)
        described = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": self.rank,
            "lora_alpha": ALPHA,
            "lora_dropout": 0.0,
            "bias": "none",
            "inference_mode": True,
            "base_model_name_or_path": None,
            "target_modules": [name.rpartition(".")[2] for name in _GGUF_NAMES],
        }
        (directory / "adapter_config.json").write_text(json.dumps(described, indent=2), encoding="utf-8")
        arrays = {f"base_model.model.{name}.weight": bits for name, bits in self.tensors()}
        specs = [TensorSpec(name, "BF16", bits.shape) for name, bits in arrays.items()]
        with SafetensorsWriter(directory / "adapter_model.safetensors", specs, {"format": "pt"}) as writer:
            for name, bits in arrays.items():
                writer.write(name, bits)
        return directory

    def write_gguf(self, path: Path) -> Path:
        """Writes the GGUF file, as llama.cpp's convert_lora_to_gguf does, and gives its path."""
        from gguf import GGUFType, GGUFWriter, Keys

        writer = GGUFWriter(path, self.config.model_type)
        writer.add_type(GGUFType.ADAPTER)
        writer.add_string(Keys.Adapter.TYPE, "lora")
        writer.add_float32(Keys.Adapter.LORA_ALPHA, float(ALPHA))
        for name, bits in self.tensors():
            module, _, part = name.rpartition(".")
            _, _, layer, projection = module.split(".", 3)
            values = float32_from_bf16(bits).astype(np.float16)
            rotated = projection.endswith(("q_proj", "k_proj"))
            if part == "lora_B" and rotated and self.config.model_type == "llama":
                values = interleaved_rows(values, self.config.head_dim)
            writer.add_tensor(f"blk.{layer}.{_GGUF_NAMES[projection]}.weight.{part.lower()}", values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


@cache
def _pool() -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal(POOL, dtype=np.float32)


def interleaved_rows(values: NDArray[np.float16], head_dim: int) -> NDArray[np.float16]:
    """Rows from Hugging Face's order into GGUF's for Llama's q and k: within a head, j and j + head_dim/2
    go to 2j and 2j + 1."""
    heads = values.reshape(-1, 2, head_dim // 2, values.shape[1])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(values.shape)
