"""Reports and profiles for the tests of the analysis: small, and with every number known."""

from __future__ import annotations

import random
from typing import Any

from pomona.compression.analysis import Analysis, ReportFile
from pomona.runtime.profile import TokenProfile

SHAPES = {
    "self_attn.q_proj": (576, 576),
    "self_attn.k_proj": (192, 576),
    "self_attn.v_proj": (192, 576),
    "self_attn.o_proj": (576, 576),
    "mlp.gate_proj": (1536, 576),
    "mlp.up_proj": (1536, 576),
    "mlp.down_proj": (576, 1536),
}
WIDTHS = (4, 3, 2)
OTHER_BYTES = 10_000


def packed_bytes(shape: tuple[int, int], bits: int) -> int:
    rows, columns = shape
    return rows * columns * bits // 8 + rows * columns // 1024 * ((1 << bits) + 2) + 2 * rows


def report_json(layers: int = 3, seed: int = 0, bits: int = 3) -> dict[str, Any]:
    """A version-2 report; losses are random, and grow about fourfold with every bit less."""
    rng = random.Random(seed)

    def module(name: str, shape: tuple[int, int], widths: tuple[int, ...], chosen: int) -> dict[str, Any]:
        sensitivity = 10 ** rng.uniform(-5, -3)
        return {
            "name": name,
            "shape": list(shape),
            "kind": name.rsplit(".", 1)[-1],
            "bits": chosen,
            "pinned": False,
            "choices": [
                {
                    "bits": width,
                    "bytes": packed_bytes(shape, width),
                    "relative_error": 0.5 / 2**width,
                    "kl": sensitivity * 4.0 ** (4 - width) * rng.uniform(0.8, 1.2),
                }
                for width in widths
            ],
        }

    modules = [module("model.embed_tokens", (4096, 576), (8, 4), 8)]
    for layer in range(layers):
        for name, shape in SHAPES.items():
            modules.append(module(f"model.layers.{layer}.{name}", shape, WIDTHS, bits))
    chosen = [next(c for c in m["choices"] if c["bits"] == m["bits"]) for m in modules]
    return {
        "version": 2,
        "tensors": [],
        "modules": modules,
        "options": {"bits": bits},
        "calibration": {"source": "self", "tokens": 6144},
        "predicted_kl": sum(c["kl"] for c in chosen),
        "measured_kl": None,
        "projection_bits_per_weight": 3.1,
        "file_bits_per_weight": 5.0,
        "file_bytes": sum(c["bytes"] for c in chosen) + OTHER_BYTES,
        "source_bytes": 10_000_000,
        "seconds": 1.0,
    }


def with_fixed_embedding() -> dict[str, Any]:
    """A report whose embedding is a tensor, int8, and no module with choices."""
    raw = report_json()
    embedding = raw["modules"].pop(0)["choices"][0]
    raw["predicted_kl"] -= embedding["kl"]
    raw["tensors"] = [
        {
            "name": "model.embed_tokens.weight",
            "shape": [4096, 576],
            "format": "int8",
            "bits": 8.03,
            "bytes": embedding["bytes"],
            "relative_error": 0.005,
        },
        {
            "name": "model.norm.weight",
            "shape": [576],
            "format": "bf16",
            "bits": 16.0,
            "bytes": 1152,
            "relative_error": 0.0,
        },
    ]
    return raw


def raw_fixed(report: ReportFile) -> list[str]:
    return [t.name.removesuffix(".weight") for t in report.tensors if len(t.shape) == 2]


def sample_analysis(raw: dict[str, Any] | None = None, model: str = "smol") -> Analysis:
    """Every module takes 1 µs, 0.02 ns a byte more; attention 50 µs and the rest 100 µs."""
    report = ReportFile.model_validate(raw or report_json())
    times = {module.name: 1000 + 0.02 * module.chosen.bytes for module in report.modules}
    for name in raw_fixed(report):
        times[name] = 40_000
    token = sum(times.values()) + 150_000
    return Analysis.of(
        model, "f00d", report, TokenProfile(64, 2, "avx512", token, 0.9 * token, 50_000, times)
    )
