"""The model shapes that pomona offers by name.

Apple's numbers (AFM report, arXiv 2407.21075, table 1, and Apple's open AXLearn configs "honeycrisp"):

- `afm-on-device`: width, head size, heads, layers and the rotary base stand in the report; FFN 8064,
  vocabulary 49,152, epsilon 1e-5 and q/k RMSNorm stand in honeycrisp-3B, all of whose other numbers equal the
  report's. That the two are one model is an inference: 2.587 B non-embedding parameters against the report's
  2.58 B.
- `afm-85m`: honeycrisp-85M.

Ours: `afm-server` (the report gives only 8 key/value heads and "100k" tokens; every size here is our choice)
and `afm-nano`, which exists for tests.

All are `qwen3`, because AFM's block is Qwen3's dense block. One difference remains: Apple's open code
normalises q and k after the rotation, Qwen3 before it. A rotation keeps the RMS of a head, so the two differ
only in the place of the learned scale.
"""

from __future__ import annotations

from dataclasses import replace

from pomona.errors import PomonaError
from pomona.models.config import ModelConfig

_AFM_ON_DEVICE = ModelConfig(
    model_type="qwen3",
    vocab_size=48 * 1024,
    hidden_size=3072,
    intermediate_size=8064,  # 2.625 x the width
    num_hidden_layers=26,
    num_attention_heads=24,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=4096,  # core pre-training; lengthened to 32,768 later, with another base
    rope_theta=500_000.0,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    # Apple's tokenizer is not public. These are the ids of its published SentencePiece siblings, which have
    # no BOS.
    bos_token_id=None,
    eos_token_ids=(1,),
    pad_token_id=0,
)

PRESETS: dict[str, ModelConfig] = {
    "afm-on-device": _AFM_ON_DEVICE,
    "afm-85m": replace(
        _AFM_ON_DEVICE,
        hidden_size=768,
        intermediate_size=3 * 768,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=6,
        head_dim=64,
    ),
    # Ours: small enough to run in every test, with rows in multiples of 16 and columns in multiples of 64.
    "afm-nano": replace(
        _AFM_ON_DEVICE,
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
    ),
    # Ours, except the 8 key/value heads and the rounded vocabulary. The width fits the report's remark that
    # muP scales the server model's learning rate by about 0.1 (768 / 8192 = 0.094); the depth and the FFN
    # keep the proportions of afm-on-device.
    "afm-server": replace(
        _AFM_ON_DEVICE,
        vocab_size=98 * 1024,
        hidden_size=8192,
        intermediate_size=21_504,  # 2.625 x the width
        num_hidden_layers=64,
        num_attention_heads=64,
    ),
}


def preset(name: str) -> ModelConfig:
    """The config of that name. Raises PomonaError that lists the names."""
    if name not in PRESETS:
        raise PomonaError(f"{name}: there is no such preset; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
