"""The mixture of supervised fine-tuning as a matter of optimisation (AFM report, section 4.3): train with the
weight of each component raised and lowered, score both, follow the better direction, drop what has little
effect.

    components:
      - {name: chat, file: chat.jsonl, weight: 0.6}
      - {name: math, file: math.jsonl, weight: 0.4}
    rows: 2000

The report gives neither the step, nor the rounds, nor what counts as little: those values are ours.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from pomona.adapters.data import DataReport, Row, read_rows
from pomona.errors import PomonaError
from pomona.posttraining.options import Count, Options, SftOptions, checked, load_yaml

Weights = dict[str, float]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class Component(Options):
    """One source of rows. file: .jsonl or .parquet, beside the mixture's file unless absolute."""

    name: Name
    file: Annotated[str, Field(min_length=1, max_length=4096)]
    weight: Annotated[float, Field(ge=0, lt=1e6)] = 1.0


class Mixture(Options):
    """weights are shares of the rows and need not add up to 1. rows: of one training; None: as many as the
    components have."""

    components: Annotated[tuple[Component, ...], Field(min_length=1, max_length=256)]
    rows: Count | None = None

    @property
    def weights(self) -> Weights:
        return normalised({one.name: one.weight for one in self.components})


class MixtureOptions(Options):
    """Of the tuning. delta: a weight is raised to w (1 + delta) and lowered to w (1 - delta). drop_below: the
    difference between the two scores, in nats per token, under which a component is dropped."""

    delta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    rounds: Annotated[int, Field(ge=1, le=100)] = 2
    drop_below: Annotated[float, Field(ge=0)] = 0.002
    rows: Count = 1000
    sft: SftOptions = SftOptions(max_steps=60, validation=0.0)


@dataclass(frozen=True)
class Trial:
    """One training. score: the loss on the benchmark rows, the lower the better."""

    what: str  # "start", "chat up", "chat down", "round 1"
    weights: Weights
    score: float


@dataclass
class MixtureReport:
    """weights: the tuned ones, dropped components at 0. first, last: scores of the first and last mixture."""

    weights: Weights
    first: float = math.nan
    last: float = math.nan
    dropped: list[str] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "version": 1, "trials": [vars(trial) for trial in self.trials]}


def normalised(weights: Mapping[str, float]) -> Weights:
    total = sum(weights.values())
    if not total > 0 or not math.isfinite(total):
        raise PomonaError("mixture: no weight is above 0; give one")
    return {name: weight / total for name, weight in weights.items()}


def tune_mixture(
    weights: Mapping[str, float],
    score: Callable[[Weights], float],
    options: MixtureOptions,
    *,
    on_trial: Callable[[Trial], None] | None = None,
) -> MixtureReport:
    """score(weights) trains and gives the loss. A round costs two trainings per component and one more.

    A round that makes the loss worse is taken back and the step halved (that is ours). PomonaError: a score
    that is no number.
    """
    report = MixtureReport(normalised(weights))
    delta = options.delta

    def tried(what: str, candidate: Weights) -> float:
        value = float(score(candidate))
        if not math.isfinite(value):
            raise PomonaError(f"mixture: the score of {what} is no number; lower the rate of the training")
        trial = Trial(what, candidate, value)
        report.trials.append(trial)
        if on_trial is not None:
            on_trial(trial)
        return value

    report.first = report.last = tried("start", report.weights)
    for number in range(1, options.rounds + 1):
        new: Weights = {}
        dropped: list[str] = []
        here = report.weights
        for name, weight in here.items():
            if weight == 0 or sum(value > 0 for value in here.values()) == 1:
                new[name] = weight
                continue
            up = tried(f"{name} up", normalised({**here, name: weight * (1 + delta)}))
            down = tried(f"{name} down", normalised({**here, name: weight * (1 - delta)}))
            new[name] = weight * (1 + delta if up < down else 1 - delta)
            if abs(up - down) < options.drop_below:
                dropped.append(name)
        if len(dropped) < sum(value > 0 for value in here.values()):  # one must stay
            new |= dict.fromkeys(dropped, 0.0)
        else:
            dropped = []
        new = normalised(new)
        value = tried(f"round {number}", new)
        if value <= report.last:
            report.weights, report.last = new, value
            report.dropped += dropped
        else:
            delta /= 2
    return report


# --- files


def read_mixture(path: Path) -> Mixture:
    """PomonaError: no YAML, an unknown key, two components of one name."""
    mixture = checked(Mixture, load_yaml(path), str(path))
    names = [one.name for one in mixture.components]
    if len(set(names)) < len(names):
        raise PomonaError(f"{path}: two components have one name; rename one")
    return mixture


def write_mixture(path: Path, mixture: Mixture, weights: Mapping[str, float]) -> None:
    """The mixture with other weights, as YAML that read_mixture reads; components at 0 are left out."""
    import yaml

    kept = [
        {**one.model_dump(), "weight": round(weights[one.name], 6)}
        for one in mixture.components
        if weights[one.name] > 0
    ]
    raw = {"components": kept, **({} if mixture.rows is None else {"rows": mixture.rows})}
    path.write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")


def read_components(path: Path, mixture: Mixture) -> dict[str, tuple[list[Row], DataReport]]:
    """Name -> rows and what is known of its file. PomonaError: a file with rows that cannot be trained on."""
    found = {}
    for one in mixture.components:
        file = path.parent / one.file
        rows, report = read_rows(file)
        if report.bad:
            raise PomonaError(
                f"{file}: {len(report.bad):,} of {report.read:,} rows cannot be trained on "
                f"({report.first_bad()}); mend them"
            )
        found[one.name] = (rows, report)
    return found


def draw(
    components: Mapping[str, Sequence[Row]], weights: Mapping[str, float], count: int, *, seed: int
) -> list[Row]:
    """`count` rows by the weights, each component's in an order of its own and again from its start where it
    has too few. Lines are numbered anew. The same seed gives the same rows, whatever the others weigh."""
    taken: list[Row] = []
    for name, share in shares(weights, count).items():
        rows = list(components[name])
        if share and not rows:
            raise PomonaError(f"mixture: component {name} has no row; leave it out")
        random.Random(f"{seed}/{name}").shuffle(rows)
        taken += [rows[number % len(rows)] for number in range(share)]
    random.Random(seed).shuffle(taken)
    return [replace(row, line=number) for number, row in enumerate(taken, start=1)]


def shares(weights: Mapping[str, float], count: int) -> dict[str, int]:
    """Whole numbers that add up to `count`, by largest remainders."""
    exact = {name: weight * count for name, weight in normalised(weights).items()}
    found = {name: int(value) for name, value in exact.items()}
    for name in sorted(exact, key=lambda name: found[name] - exact[name])[: count - sum(found.values())]:
        found[name] += 1
    return found


def read_sft_data(path: Path, *, seed: int) -> tuple[list[Row], DataReport]:
    """Rows for supervised fine-tuning: of a file, or drawn by a mixture (.yaml)."""
    if path.suffix not in (".yaml", ".yml"):
        return read_rows(path)
    mixture = read_mixture(path)
    components = read_components(path, mixture)
    parts = {name: rows for name, (rows, _) in components.items()}
    count = mixture.rows or sum(map(len, parts.values()))
    rows = draw(parts, mixture.weights, count, seed=seed)
    digest = hashlib.sha256(json.dumps(mixture.model_dump(), sort_keys=True).encode())
    report = DataReport(path.name, "", read=len(rows))
    for name, (_, one) in components.items():
        digest.update(f"{name}\0{one.sha256}\0".encode())
        report.problems += [replace(p, what=f"{name}: {p.what}") for p in one.problems]
    report.sha256 = digest.hexdigest()
    for row in rows:
        for counts, value in ((report.licenses, row.license), (report.sources, row.source)):
            counts[value or ""] = counts.get(value or "", 0) + 1
    return rows, report
