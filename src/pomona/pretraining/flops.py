"""Floating-point operations of training, and what devices can make: for utilisation and plans."""

from __future__ import annotations

import math

from pomona.models.config import ModelConfig

# Dense bfloat16 FLOP per second as published by the makers; by a part of the device's name, longest first.
PEAK_FLOPS = {
    "B200": 2.25e15,
    "H200": 9.89e14,
    "H100": 9.89e14,
    "A100": 3.12e14,
    "L40S": 3.62e14,
    "TPUV5P": 4.59e14,
    "TPUV4": 2.75e14,
}
# Memory of one device in bytes, under the same names.
DEVICE_BYTES = {
    "B200": 192e9,
    "H200": 141e9,
    "H100": 80e9,
    "A100": 80e9,
    "L40S": 48e9,
    "TPUV5P": 95e9,
    "TPUV4": 32e9,
}


def flop_per_token(config: ModelConfig, sequence_length: int) -> float:
    """FLOP of forward and backward pass per token, no recomputation: 6 per weight of a matrix, and attention.

    The way of counting of PaLM (Chowdhery et al. 2022, appendix B): 12 L H Q T for scores and values over the
    whole square of T tokens. The output matrix counts, tied or not; looking up an embedding does not.
    """
    return 3 * forward_flop_per_token(config, sequence_length)


def forward_flop_per_token(config: ModelConfig, sequence_length: int) -> float:
    """A third of `flop_per_token`: 2 per weight, and 4 L H Q T."""
    matrices = sum(math.prod(shape) for shape in config.linear_shapes().values())
    matrices += config.vocab_size * config.hidden_size
    heads = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    return 2.0 * matrices + 4.0 * heads * sequence_length


def peak_flops(device: str) -> float | None:
    """Of a device by its name ("NVIDIA H100 80GB HBM3"); None if it is not in the table."""
    plain = device.upper().replace(" ", "").replace("-", "")
    return next((value for name, value in PEAK_FLOPS.items() if name in plain), None)
