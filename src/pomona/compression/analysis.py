"""What a compressed model costs and what its bits lose, tensor by tensor: data of `pomona inspect --report`.

    report = read_report(Path("smollm2-135m-3.5bit"))
    analysis = Analysis.of(directory, report, measure_decoding(engine))

Joins compression_report.json (version 2: which bits a module has, which it could have, and what each choice
loses) with the measured time per module. Predicted times of other choices follow a line through the measured
ones, by bytes and by weights (TimeFit).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pomona.compression.report import REPORT_FILE
from pomona.errors import PomonaError
from pomona.runtime.profile import TokenProfile

VERSION = 2
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")

_Finite = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0, le=1 << 53)]  # what a double, and so the page, holds exactly


class Choice(BaseModel):
    """A module at some number of bits; `kl` is the mean KL in nats per token if it alone has them, None where
    no sensitivity was measured."""

    model_config = ConfigDict(frozen=True)

    bits: Annotated[int, Field(ge=1, le=16)]
    bytes: _Count
    relative_error: _Finite
    kl: _Finite | None = None


class ReportModule(BaseModel):
    """A weight that takes part in the allocation, its choices from most bits to fewest."""

    model_config = ConfigDict(frozen=True)

    name: Annotated[str, Field(min_length=1)]
    shape: tuple[_Count, _Count]
    kind: str
    bits: int
    pinned: bool
    choices: Annotated[tuple[Choice, ...], Field(min_length=1)]
    fixed: bool = Field(default=False, exclude=True)  # no allocation decides about it

    @model_validator(mode="after")
    def _chosen(self) -> ReportModule:
        widths = [choice.bits for choice in self.choices]
        if len(set(widths)) != len(widths):
            raise ValueError(f"module {self.name} has two choices of the same bits")
        if self.bits not in widths:
            raise ValueError(f"module {self.name} has {self.bits} bits, which are none of its choices")
        return self

    @property
    def chosen(self) -> Choice:
        return next(choice for choice in self.choices if choice.bits == self.bits)

    @property
    def weights(self) -> int:
        return math.prod(self.shape)

    @property
    def layer(self) -> int | None:
        """The number in its name; None for embedding and head."""
        found = _LAYER.search(self.name)
        return int(found.group(1)) if found else None


class ReportTensor(BaseModel):
    """As in version 1 of the report."""

    model_config = ConfigDict(frozen=True)

    name: str
    shape: tuple[_Count, ...]
    format: str
    bits: _Finite
    bytes: _Count
    relative_error: _Finite


class ReportFile(BaseModel):
    """compression_report.json, version 2, as far as it is read here."""

    model_config = ConfigDict(frozen=True)

    version: int
    tensors: tuple[ReportTensor, ...]
    file_bytes: _Count
    source_bytes: _Count
    options: dict[str, Any]
    calibration: dict[str, Any]
    modules: Annotated[tuple[ReportModule, ...], Field(min_length=1)]
    predicted_kl: _Finite | None
    measured_kl: _Finite | None

    @model_validator(mode="after")
    def _distinct(self) -> ReportFile:
        names = [module.name for module in self.modules]
        if len(set(names)) != len(names):
            raise ValueError("a module appears twice")
        if sum(module.chosen.bytes for module in self.modules) > self.file_bytes:
            raise ValueError("the modules are larger than the file")
        return self


def read_report(directory: Path) -> ReportFile:
    """The report of a compressed model.

    PomonaError: there is none, it is of version 1, or it is not what it should be.
    """
    path = directory / REPORT_FILE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PomonaError(
            f"{directory}: has no {REPORT_FILE}; --report is about models that `pomona compress` made"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise PomonaError(f"{path}: cannot be read ({error}); compress the model again") from error
    version = raw.get("version") if isinstance(raw, dict) else None
    if version == 1:
        raise PomonaError(
            f"{path}: is of version 1, without the choices of each module; compress the model again "
            "with this version of pomona"
        )
    if version != VERSION:
        raise PomonaError(f"{path}: version {str(version)[:40]} is not {VERSION}; compress the model again")
    try:
        return ReportFile.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise PomonaError(f"{path}: {where or 'report'}: {first['msg']}; compress the model again") from error


@dataclass(frozen=True)
class TimeFit:
    """nanoseconds = fixed + per_byte * bytes + per_weight * weights through the measured modules, none < 0.

    Reading costs time by the byte and looking up by the weight. Where all modules have the same bits the two
    cannot be told apart, and time goes by whichever explains the head as well.
    """

    fixed_ns: float
    ns_per_byte: float
    ns_per_weight: float
    median_deviation: float  # of |fit / measured - 1|

    @classmethod
    def through(cls, sizes: Sequence[int], weights: Sequence[int], times: Sequence[float]) -> TimeFit:
        """Least squares of the relative deviation, so that a large head does not decide alone."""
        rows = [row for row in zip(sizes, weights, times, strict=True) if min(row) > 0]
        if not rows:
            return cls(0.0, 0.0, 0.0, 0.0)
        size, weight, time = (np.array(column, np.float64) for column in zip(*rows, strict=True))
        features = np.stack([np.ones_like(size), size, weight], axis=1)
        best, least = np.zeros(3), math.inf
        # Fewer terms first: one that explains nothing more is left out.
        for terms in ([1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]):
            columns = features[:, terms] / time[:, None]
            scale = np.linalg.norm(columns, axis=0)
            found, *_ = np.linalg.lstsq(columns / scale, np.ones_like(time), rcond=None)
            squares = float(np.sum((columns @ (found / scale) - 1) ** 2))
            if (found >= 0).all() and squares < least * (1 - 1e-9) - 1e-12:
                best, least = np.zeros(3), squares
                best[terms] = found / scale
        deviation = float(np.median(np.abs(features @ best / time - 1)))
        return cls(float(best[0]), float(best[1]), float(best[2]), deviation)

    def of(self, nbytes: int, weights: int) -> float:
        """Nanoseconds of a module by its sizes alone."""
        return self.fixed_ns + self.ns_per_byte * nbytes + self.ns_per_weight * weights

    def scaled(self, measured_ns: float, weights: int, measured_bytes: int, other_bytes: int) -> float:
        """The time of a module that was measured with one size, at another size."""
        here = self.of(measured_bytes, weights)
        return measured_ns * self.of(other_bytes, weights) / here if here > 0 else 0.0


@dataclass(frozen=True)
class ModuleTotals:
    """The sum over all modules of one kind."""

    kind: str
    modules: int
    weights: int
    bytes: int
    loss: float
    nanoseconds: float

    @property
    def bits(self) -> float:
        """Per weight, tables and scales counted."""
        return 8 * self.bytes / max(self.weights, 1)


def _without_choice(report: ReportFile, profile: TokenProfile) -> list[ReportModule]:
    """The tensors that a token is multiplied with and that the report has no choices of."""
    known = {module.name for module in report.modules}
    found = []
    for tensor in report.tensors:
        name = tensor.name.removesuffix(".weight")
        if name in known or name not in profile.modules or len(tensor.shape) != 2:
            continue
        bits = int("".join(filter(str.isdigit, tensor.format)) or round(tensor.bits))
        choice = Choice(bits=bits, bytes=tensor.bytes, relative_error=tensor.relative_error)
        found.append(
            ReportModule(
                name=name,
                shape=(tensor.shape[0], tensor.shape[1]),
                kind=name.rpartition(".")[2],
                bits=bits,
                pinned=False,
                choices=(choice,),
                fixed=True,
            )
        )
    return found


@dataclass(frozen=True)
class Analysis:
    """A report and a profile of the same model.

    modules: those of the report, and before them what is multiplied without having a choice, such as a head
    in int8; its `kl` is None.
    """

    model: str
    fingerprint: str
    report: ReportFile
    modules: tuple[ReportModule, ...]
    profile: TokenProfile
    fit: TimeFit

    @classmethod
    def of(cls, model: str, fingerprint: str, report: ReportFile, profile: TokenProfile) -> Analysis:
        modules = (*_without_choice(report, profile), *report.modules)
        timed = [module for module in modules if module.name in profile.modules]
        fit = TimeFit.through(
            [module.chosen.bytes for module in timed],
            [module.weights for module in timed],
            [profile.modules[module.name] for module in timed],
        )
        return cls(model, fingerprint, report, modules, profile, fit)

    def nanoseconds(self, module: ReportModule) -> float:
        """Measured, per token; 0 for what multiplies nothing, such as an embedding that is not the head."""
        return self.profile.modules.get(module.name, 0.0)

    @property
    def has_kl(self) -> bool:
        """Whether the sensitivity of every choice was measured."""
        return all(c.kl is not None for m in self.modules if not m.fixed for c in m.choices)

    @property
    def other_bytes(self) -> int:
        """Of the file: norms, biases and the header."""
        return self.report.file_bytes - sum(module.chosen.bytes for module in self.modules)

    @property
    def fixed_ns(self) -> float:
        """Of a token: what belongs to no module."""
        timed = sum(self.nanoseconds(module) for module in self.modules)
        return max(self.profile.token_ns - timed, 0.0)

    def by_cost(self) -> list[ReportModule]:
        """The modules, the slowest first; of equal time the largest first."""
        return sorted(self.modules, key=lambda m: (-self.nanoseconds(m), -m.chosen.bytes, m.name))

    def totals(self) -> list[ModuleTotals]:
        """By kind, the slowest first."""
        kinds: dict[str, list[ReportModule]] = {}
        for module in self.modules:
            kinds.setdefault(module.kind, []).append(module)
        totals = [
            ModuleTotals(
                kind,
                len(modules),
                sum(m.weights for m in modules),
                sum(m.chosen.bytes for m in modules),
                sum(self.loss(m.chosen) for m in modules),
                sum(self.nanoseconds(m) for m in modules),
            )
            for kind, modules in kinds.items()
        ]
        return sorted(totals, key=lambda total: (-total.nanoseconds, -total.bytes))

    def to_json(self) -> dict[str, Any]:
        """All of it, as `--json` prints and the page embeds it."""
        return {
            "version": 1,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "file_bytes": self.report.file_bytes,
            "source_bytes": self.report.source_bytes,
            "other_bytes": self.other_bytes,
            "options": self.report.options,
            "calibration": self.report.calibration,
            "predicted_kl": self.report.predicted_kl,
            "measured_kl": self.report.measured_kl,
            "loss": "kl" if self.has_kl else "error",
            "time": {**self.profile.to_json(), "fixed_ns": self.fixed_ns},
            "fit": {
                "fixed_ns": self.fit.fixed_ns,
                "ns_per_byte": self.fit.ns_per_byte,
                "ns_per_weight": self.fit.ns_per_weight,
                "widths": sorted({module.bits for module in self.modules}),
                "median_deviation": self.fit.median_deviation,
            },
            "modules": [self._module_json(module) for module in self.modules],
        }

    def loss(self, choice: Choice) -> float:
        """What the allocation adds up: the KL, or where none was measured the relative squared error."""
        if self.has_kl:
            return choice.kl or 0.0
        return choice.relative_error**2

    def _module_json(self, module: ReportModule) -> dict[str, Any]:
        chosen, measured = module.chosen, self.nanoseconds(module)
        return {
            "name": module.name,
            "kind": module.kind,
            "layer": module.layer,
            "shape": list(module.shape),
            "bits": module.bits,
            "pinned": module.pinned,
            "fixed": module.fixed,
            "bytes": chosen.bytes,
            "relative_error": chosen.relative_error,
            "kl": chosen.kl,
            "ns": measured,
            "choices": [
                {
                    **choice.model_dump(),
                    "loss": self.loss(choice),
                    "ns": self.fit.scaled(measured, module.weights, chosen.bytes, choice.bytes),
                }
                for choice in module.choices
            ],
        }
