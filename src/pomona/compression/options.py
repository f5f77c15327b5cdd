"""What a compression was asked for, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from pomona.compression.packing import EMBEDDING_WIDTHS
from pomona.compression.palettize import Method
from pomona.errors import PomonaError
from pomona.models.palettized import BLOCK, PALETTE_BITS

Allocation = Literal["kl", "error"]


@dataclass(frozen=True)
class CompressOptions:
    """Exactly one of bits, size and max_kl is a budget (default: 4 bits).

    bits: 4, 3 or 2 for all projections; or a fraction such as 3.5, met by a mix, tables and scales counted.
    size: bytes of the weights file. max_kl: predicted nats per token. constraints: see constraints.py.
    allocation: "kl" measures the sensitivity of every module; "error" takes its relative error, in no time.
    embedding_bits: 8, 4 or 3, of the head too; None: chosen for size and max_kl, else 8. table_columns: input
    columns that share a table with 16 rows; a matrix whose width it does not divide takes the next smaller
    divisor. calibration: "self", "none" (plain k-means) or a UTF-8 text file.
    """

    bits: float | None = None
    size: int | None = None
    max_kl: float | None = None
    method: Method = "compensated"
    allocation: Allocation = "kl"
    table_columns: int | None = None
    calibration: str = "self"
    constraints: str | None = None
    embedding_bits: int | None = None

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.bits, self.size, self.max_kl)) > 1:
            raise PomonaError("--bits, --size and --max-kl: each is a budget; give one of them")
        if self.bits is not None and not 2 <= self.bits <= 4:
            raise PomonaError(f"--bits {self.bits:g}: must lie in 2 .. 4, such as 4, 3.5 or 3")
        if self.size is not None and self.size < 1:
            raise PomonaError(f"--size {self.size}: must be a number of bytes, such as 70MB")
        if self.max_kl is not None and not self.max_kl > 0:
            raise PomonaError(f"--max-kl {self.max_kl:g}: must be above 0, such as 0.1")
        if self.method not in get_args(Method):
            raise PomonaError(f"--method {self.method}: must be kmeans, weighted or compensated")
        if self.allocation not in get_args(Allocation):
            raise PomonaError(f"--allocation {self.allocation}: must be kl or error")
        if self.embedding_bits is not None and self.embedding_bits not in EMBEDDING_WIDTHS:
            raise PomonaError(f"--embedding-bits {self.embedding_bits}: must be 8, 4 or 3")
        if self.table_columns is not None and (self.table_columns < BLOCK or self.table_columns % BLOCK):
            raise PomonaError(f"table_columns {self.table_columns}: must be a multiple of {BLOCK}")
        if self.calibration == "none" and (self.method != "kmeans" or self.needs_sensitivity):
            raise PomonaError(
                "--calibration none: leaves only --method kmeans, and --allocation error for a mix of bits"
            )

    @property
    def uniform_bits(self) -> int | None:
        """The width of all projections, None for a mix."""
        bits = 4.0 if self.bits is None and self.size is None and self.max_kl is None else self.bits
        return int(bits) if bits is not None and bits in PALETTE_BITS else None

    @property
    def needs_sensitivity(self) -> bool:
        return self.max_kl is not None or (self.uniform_bits is None and self.allocation == "kl")
