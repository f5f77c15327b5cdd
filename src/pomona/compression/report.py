"""What a compression did, tensor by tensor: the compression_report.json of a model directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

REPORT_FILE = "compression_report.json"
VERSION = 2


@dataclass(frozen=True)
class TensorReport:
    """`relative_error` is sqrt(tr((W - Q) H (W - Q)^T) / tr(W H W^T)) with the moment H of the inputs (its
    diagonal for int8, the identity without calibration); 0 for copies."""

    name: str
    shape: tuple[int, ...]
    format: str
    bits: float  # of storage per weight, tables and scales counted
    bytes: int
    relative_error: float


@dataclass(frozen=True)
class ChoiceReport:
    """One width that a module could take. kl: predicted mean KL (nats per token) when it alone takes it; None
    where no sensitivity was measured."""

    bits: int
    bytes: int
    relative_error: float
    kl: float | None


@dataclass(frozen=True)
class ModuleReport:
    """A projection: the width that it got, whether a constraint said so, and what it could have had."""

    name: str
    shape: tuple[int, ...]
    kind: str
    bits: int
    pinned: bool
    choices: tuple[ChoiceReport, ...]


@dataclass(frozen=True)
class CompressionReport:
    """predicted_kl: the sum over the modules; measured_kl: of the finished model on held-out calibration
    text. Nats per token; both None without a measurement."""

    tensors: tuple[TensorReport, ...]
    modules: tuple[ModuleReport, ...]
    options: Mapping[str, Any]
    calibration: Mapping[str, Any]
    predicted_kl: float | None
    measured_kl: float | None
    projection_bits_per_weight: float
    file_bits_per_weight: float
    file_bytes: int
    source_bytes: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {"version": VERSION, **asdict(self)}
