"""The packed forms of every module, kept in the work folder: packed once, read as often as needed.

A form is a module at a width, packed in earnest or as a draft. Drafts are weighted k-means alone, which takes
a fraction of the time: large models choose their bits by drafts, and pack in earnest only what was chosen. A
draft is packed whole at the width at which the loss is measured; at the others some rows tell its error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pomona.compression.moments import InputMoments
from pomona.compression.packing import Plan, pack, plan_matrix
from pomona.compression.palettize import Method
from pomona.compression.report import ChoiceReport
from pomona.compression.sensitivity import predict
from pomona.compression.work import WorkFolder
from pomona.errors import PomonaError
from pomona.models.palettized import GROUP_ROWS
from pomona.models.safetensors_file import Checkpoint

ERRORS = "errors.json"  # relative errors by file name
DRAFT_METHOD: Method = "weighted"
SAMPLE_GROUPS = 16  # of 16 rows each, evenly spaced, from which the error of a draft is told


class PackedModules:
    """shapes: [N, K] of all that can be packed, by module."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        work: WorkFolder,
        shapes: Mapping[str, tuple[int, int]],
        table_columns: int,
        method: Method,
        threads: int,
    ) -> None:
        self.checkpoint, self.work, self.shapes = checkpoint, work, shapes
        self.table_columns, self.method, self.threads = table_columns, method, threads

    def plan(self, module: str, bits: int) -> Plan:
        return plan_matrix(module, self.shapes[module], self.table_columns, bits)

    def has(self, module: str, bits: int, draft: bool = False) -> bool:
        name = _file(module, bits, draft)
        return (self.work.path / name).is_file() and name in self._errors()

    def add(self, module: str, bits: int, moments: InputMoments | None, draft: bool = False) -> None:
        """Packs it. moments: of its inputs, full ones where the method asks for them; None: plain k-means."""
        method = "kmeans" if moments is None else DRAFT_METHOD if draft else self.method
        packed = pack(self.checkpoint, self.plan(module, bits), moments, method, self.threads)
        arrays = {name.rpartition(".")[2]: array for name, array in packed.arrays.items()}
        name = _file(module, bits, draft)
        self.work.write_arrays(name, arrays)
        self.work.write_json(ERRORS, self._errors() | {name: packed.relative_error})

    def estimate(
        self, module: str, widths: Iterable[int], measured_bits: int, moments: InputMoments | None
    ) -> None:
        """Notes the errors that drafts would have, by how those of some rows compare with `measured_bits`, at
        which the draft is there."""
        rows = _sample(self.shapes[module][0])
        method: Method = "kmeans" if moments is None else DRAFT_METHOD

        def of_sample(bits: int) -> float:
            plan = self.plan(module, bits)
            return pack(self.checkpoint, plan, moments, method, self.threads, rows).relative_error

        whole, there = self.error(module, measured_bits, draft=True), of_sample(measured_bits)
        errors = {bits: of_sample(bits) for bits in widths}
        known = {
            _file(module, bits, draft=True): whole * here / there if there > 0.0 else here
            for bits, here in errors.items()
        }
        self.work.write_json(ERRORS, self._errors() | known)

    def knows(self, module: str, bits: int, draft: bool) -> bool:
        """Whether its error is known."""
        return _file(module, bits, draft) in self._errors()

    def parts(self, module: str, bits: int, draft: bool = False) -> tuple[dict[str, NDArray[Any]], float]:
        """The stored arrays by tensor name, and the relative error."""
        name = _file(module, bits, draft)
        arrays = self.work.read_arrays(name)
        if arrays is None:
            raise self._damaged()
        return {f"{module}.{part}": array for part, array in arrays.items()}, self.error(module, bits, draft)

    def error(self, module: str, bits: int, draft: bool = False) -> float:
        errors = self._errors()
        if _file(module, bits, draft) not in errors:
            raise self._damaged()
        return float(errors[_file(module, bits, draft)])

    def choices(
        self, module: str, widths: Iterable[int], kl: float | None, measured_bits: int, draft: bool
    ) -> list[ChoiceReport]:
        """The widths of a module with their bytes, errors and losses; kl: measured at `measured_bits`.

        draft: the errors are those of drafts. Where a width was packed in earnest too, all are scaled by what
        that gained there, so that they stay comparable with each other.
        """
        widths = tuple(widths)
        errors = {width: self.error(module, width, draft) for width in widths}
        measured = errors[measured_bits]
        if draft:
            gains = [
                self.error(module, width) / errors[width]
                for width in widths
                if self.has(module, width) and errors[width] > 0.0
            ]
            gain = math.prod(gains) ** (1 / len(gains)) if gains else 1.0
            errors = {width: error * gain for width, error in errors.items()}
        return [
            ChoiceReport(
                width,
                self.plan(module, width).nbytes,
                errors[width],
                None if kl is None else predict(kl, measured, errors[width]),
            )
            for width in widths
        ]

    def _errors(self) -> dict[str, float]:
        found: dict[str, float] = self.work.read_json(ERRORS) or {}
        return found

    def _damaged(self) -> PomonaError:
        return PomonaError(f"{self.work.path}: is damaged; delete it and start again")


def _sample(rows: int) -> NDArray[np.intp]:
    """The rows of SAMPLE_GROUPS groups of a matrix, or all."""
    groups = rows // GROUP_ROWS
    chosen = np.unique(np.linspace(0, groups - 1, min(groups, SAMPLE_GROUPS)).astype(np.intp))
    return (chosen[:, None] * GROUP_ROWS + np.arange(GROUP_ROWS)).ravel()


def _file(module: str, bits: int, draft: bool) -> str:
    return f"{module}.{bits}{'.draft' if draft else ''}.npz"
