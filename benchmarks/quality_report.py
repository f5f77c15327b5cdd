"""The table, the goals and the plot of `benchmarks.quality`, from what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from benchmarks.choices import TASKS, TITLES
from benchmarks.common import Goal, Row
from benchmarks.distributions import Sums
from benchmarks.plot import Point, Series, svg

Kind = Literal["reference", "ours", "llama.cpp", "llama.cpp 16"]

# Goals: bits per projection weight, at most so many in the whole file, and the loss of perplexity in
# percent before and after the recovery adapter.
BUDGETS = ((4.0, 4.95, 12.0, 6.0), (3.5, 4.55, 30.0, 12.0))
CLOSED = 60.0  # percent of the KL that the recovery adapter takes away
AGREEMENT = 1.0  # thousandths of a nat between the two 16-bit engines
SLACK = 0.005  # of a budget: what rounding to two digits hides

DEQUANTISED = (
    "16 bit is the built-in checkpoint, which was published as Q4_1 (a scale and a minimum per 32 weights of "
    "a row) and de-quantised: its weights lie on that grid. A 4-bit format of the same kind would be "
    "lossless by construction, which no format of this table enjoys; what is measured at 4 bits is the loss "
    "against that checkpoint, not against the original model"
)


@dataclass(frozen=True)
class Found:
    """One contender's figures. `file_bytes` of all tensors with their scales and tables, headers counted;
    `base` names the same model without its adapter."""

    name: str
    kind: Kind
    file_bytes: int
    weights: int
    projection_bits: float
    sums: Sums
    adapter_bytes: int = 0
    base: str | None = None
    accuracies: Mapping[str, float] = field(default_factory=dict)
    types: Mapping[str, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return self.file_bytes + self.adapter_bytes

    @property
    def kl(self) -> float:
        return self.sums.mean_kl

    def to_json(self, reference: Found) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "base": self.base,
            "file_bytes": self.file_bytes,
            "adapter_bytes": self.adapter_bytes,
            "bits_per_weight": 8 * self.file_bytes / self.weights,
            "bits_per_weight_with_adapter": 8 * self.bytes / self.weights,
            "projection_bits_per_weight": self.projection_bits,
            "tokens": self.sums.tokens,
            "perplexity": self.sums.perplexity,
            "loss_percent": loss(self, reference),
            "kl": self.kl,
            "same_top_token": self.sums.same_top,
            "accuracies": dict(self.accuracies),
            "types": dict(self.types),
        }


def loss(one: Found, reference: Found) -> float:
    """Percent of perplexity above the reference's."""
    return 100 * (one.sums.perplexity / reference.sums.perplexity - 1)


def rows(found: Sequence[Found], reference: Found) -> list[Row]:
    """From most bytes to fewest."""
    tasks = [task for task in TASKS if any(task in one.accuracies for one in found)]
    shown: list[Row] = []
    for one in sorted(found, key=lambda one: (-one.file_bytes, one.adapter_bytes, one.name)):
        row: dict[str, str | float] = {
            "16 bit = de-quantised Q4_1" if _is_built_in(reference) else "model": one.name,
            "MB": one.file_bytes / 1e6,
            "bits/weight": f"{8 * one.file_bytes / one.weights:.2f}",
            "projections": f"{one.projection_bits:.2f}",
            "adapter MB": one.adapter_bytes / 1e6 if one.adapter_bytes else "",
            "bits with it": f"{8 * one.bytes / one.weights:.2f}" if one.adapter_bytes else "",
            "perplexity": f"{one.sums.perplexity:.2f}",
            "loss %": "" if one is reference else f"{loss(one, reference):+.1f}",
            "KL": "" if one is reference else _small(one.kl),
            "same top %": "" if one is reference else 100 * one.sums.same_top,
        }
        for task in tasks:
            value = one.accuracies.get(task)
            row[f"{TITLES[task]} %"] = "" if value is None else 100 * value
        shown.append(row)
    return shown


def _is_built_in(reference: Found) -> bool:
    return "smollm2-135m" in reference.name


def _small(value: float) -> str:
    return f"{value:.3f}" if value >= 0.01 else f"{value:.1e}"


# --- the curve -------------------------------------------------------------------------------------------


def front(found: Sequence[Found]) -> list[Found]:
    """Those that no other of them beats in bytes and KL at once, from fewest bytes to most."""
    kept: list[Found] = []
    for one in sorted(found, key=lambda one: (one.bytes, one.kl)):
        if not kept or one.kl < kept[-1].kl:
            kept.append(one)
    return kept


def dominates(one: Found, other: Found) -> bool:
    """Fewer bytes and less KL; equal in one of the two is enough if the other is less."""
    return one.bytes <= other.bytes and one.kl <= other.kl and (one.bytes < other.bytes or one.kl < other.kl)


def curve_at(curve: Sequence[Found], size: int) -> float | None:
    """KL of our curve at so many bytes: straight between its points where KL is logarithmic, level beyond the
    largest, None below the smallest."""
    if not curve or size < curve[0].bytes:
        return None
    for left, right in pairwise(curve):
        if left.bytes <= size <= right.bytes:
            share = (size - left.bytes) / (right.bytes - left.bytes)
            low, high = math.log(max(left.kl, 1e-12)), math.log(max(right.kl, 1e-12))
            return math.exp(low + share * (high - low))
    return curve[-1].kl


def below(found: Sequence[Found]) -> list[str]:
    """llama.cpp's quantisations that have fewer bytes and less KL than a point of our curve, or lie under the
    line between two of them."""
    curve = front([one for one in found if one.kind == "ours"])
    names = []
    for one in found:
        if one.kind != "llama.cpp":
            continue
        line = curve_at(curve, one.bytes)
        under = line is not None and one.bytes <= curve[-1].bytes and one.kl < (1 - 1e-9) * line
        if under or any(dominates(one, point) for point in curve):
            names.append(one.name)
    return names


# --- goals -----------------------------------------------------------------------------------------------


def goals(found: Sequence[Found], reference: Found) -> list[Goal]:
    """The issue's, for what was measured; a model that is missing misses them."""
    by_base = {one.base: one for one in found if one.base is not None}
    plain = [one for one in found if one.kind == "ours" and one.base is None]
    result = []
    for budget, whole, before, after in BUDGETS:
        fitting = [
            one
            for one in plain
            if budget - 0.4 < one.projection_bits <= budget + SLACK
            and 8 * one.file_bytes / one.weights <= whole
        ]
        best = min(fitting, key=lambda one: one.kl, default=None)
        recovered = None if best is None else by_base.get(best.name)
        name = f"perplexity loss at {budget:g} bits per projection weight, %"
        result.append(Goal(name, None if best is None else loss(best, reference), before, "<="))
        value = None if recovered is None else loss(recovered, reference)
        result.append(Goal(f"{name}, with the recovery adapter", value, after, "<="))
    shares = [
        100 * (1 - by_base[one.name].kl / one.kl) for one in plain if one.name in by_base and one.kl > 0
    ]
    least = min(shares, default=None)
    result.append(Goal("KL that the recovery adapter takes away, %, the least of all models", least, CLOSED))
    if any(one.kind == "llama.cpp" for one in found):
        value = float(len(below(found))) if plain else None
        result.append(Goal("llama.cpp quantisations below our curve", value, 0, "<="))
    sixteen = next((one for one in found if one.kind == "llama.cpp 16"), None)
    if sixteen is not None:
        value = 1000 * sixteen.kl
        result.append(Goal("KL between the two 16-bit engines, thousandths of a nat", value, AGREEMENT, "<="))
    return result


def notes(
    found: Sequence[Found],
    reference: Found,
    protocol: str,
    fallbacks: Mapping[str, str],
    refused: Mapping[str, str],
) -> list[str]:
    """What a reader must know to judge the table."""
    lines = [DEQUANTISED] if _is_built_in(reference) else []
    lines.append(protocol)
    lines.append(
        "bits/weight counts everything in the file (embedding, norms, tables, scales, header; none holds a "
        "tokenizer), `projections` the linear layers with their tables and scales; an adapter's bytes have "
        "columns of their own and count in the plot"
    )
    peers = [one for one in found if one.kind == "llama.cpp"]
    if peers:
        lines.append(
            "llama.cpp's files are made by its own quantiser from the same 16-bit weights; `imatrix`: with "
            "its importance matrix, filled with the second moments that our compression uses; `pure`: every "
            "matrix in that type, the embedding too"
        )
    if fallbacks:
        lines.append(
            "rows of this model are no multiple of 256, so llama.cpp takes other types: "
            + "; ".join(f"{name}: {text}" for name, text in fallbacks.items())
        )
    lines += [f"{name} could not be made: {why}" for name, why in refused.items()]
    if peers and (under := below(found)):
        lines.append(f"below our curve: {', '.join(under)}")
    return lines


def plot(found: Sequence[Found], reference: Found, protocol: str) -> str:
    """KL against bytes, as SVG."""
    ours = [one for one in found if one.kind == "ours"]
    peers = [one for one in found if one.kind == "llama.cpp"]
    curve = front(ours)

    def points(chosen: Sequence[Found]) -> tuple[Point, ...]:
        return tuple(
            Point(one.bytes / 1e6, max(one.kl, 1e-6), one.name.removeprefix("llama.cpp ")) for one in chosen
        )

    series = [
        Series("pomona, the best at each size", points(curve), joined=True),
        Series("llama.cpp", points(peers)),
        Series("pomona, others", points([one for one in ours if one not in curve])),
    ]
    sixteen = "de-quantised Q4_1" if _is_built_in(reference) else reference.name
    return svg(
        "Loss against bytes",
        "MB of weights, adapter included",
        "mean KL to the 16-bit model, nats per token",
        [one for one in series if one.points],
        f"{protocol.split(';')[0]}; 16 bit is the {sixteen} checkpoint",
    )
