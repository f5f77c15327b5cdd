"""What a compression did, tensor by tensor: the compression_report.json of a model directory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

REPORT_FILE = "compression_report.json"


@dataclass(frozen=True)
class TensorReport:
    """`relative_error` is sqrt(sum h (w - q)^2 / sum h w^2) with the column importance h; 0 for copies."""

    name: str
    shape: tuple[int, ...]
    format: str
    bits: float  # of storage per weight, tables and scales counted
    bytes: int
    relative_error: float


@dataclass(frozen=True)
class CompressionReport:
    tensors: tuple[TensorReport, ...]
    projection_bits_per_weight: float
    file_bits_per_weight: float
    file_bytes: int
    source_bytes: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {"version": 1, **asdict(self)}
