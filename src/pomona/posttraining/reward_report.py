"""What a reward model is worth: accuracy by level, calibration, best of N (AFM report, sections 4.3 and 4.4).

The numbers are of pairs whose better response is known. Shape letters: n pairs, K responses of one prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pomona.adapters.metrics import Interval, bootstrap, mean
from pomona.errors import PomonaError
from pomona.line_chart import Line, line_chart
from pomona.posttraining.preferences import LEVELS, Preference
from pomona.posttraining.reward_model import RewardModel

Floats = NDArray[np.float64]
BINS = 10
_RIGHT = mean("accuracy", lambda right, _: float(right))


@dataclass(frozen=True)
class CalibrationBin:
    """Pairs for which the model said about the same: predicted, the mean of sigma(|r_c - r_r|); right, how
    often the better response had the higher reward."""

    predicted: float
    right: float
    pairs: int


@dataclass(frozen=True)
class RewardReport:
    """accuracy: of pairs the share in which the better response has the higher reward; equal rewards count
    half. by_level: "" for pairs without a level. gap: mean r_c - r_r by level. calibration_error: expected
    (mean over pairs of |predicted - right| of the bin). gradings: accuracy by question, with that of always
    giving the commonest grade. not_finite: pairs left out because a reward was no number."""

    pairs: int
    accuracy: Interval | None
    by_level: Mapping[str, Interval] = field(default_factory=dict)
    gap: Mapping[str, float] = field(default_factory=dict)
    calibration: tuple[CalibrationBin, ...] = ()
    calibration_error: float | None = None
    gradings: Mapping[str, tuple[Interval, float]] = field(default_factory=dict)
    not_finite: int = 0
    right: tuple[float, ...] = ()  # per pair, in the order of the rows; for comparing models

    def to_json(self) -> dict[str, Any]:
        def shown(one: Interval | None) -> dict[str, float] | None:
            return None if one is None else vars(one)

        return {
            "pairs": self.pairs,
            "accuracy": shown(self.accuracy),
            "by_level": {level: shown(one) for level, one in self.by_level.items()},
            "gap": dict(self.gap),
            "calibration": [vars(one) for one in self.calibration],
            "calibration_error": self.calibration_error,
            "gradings": {
                name: {"accuracy": shown(one), "commonest": commonest}
                for name, (one, commonest) in self.gradings.items()
            },
            "not_finite": self.not_finite,
        }


def evaluate(model: RewardModel, rows: Sequence[Preference]) -> RewardReport:
    """Scores both responses of every pair, and the grades where there are any."""
    pairs = [row for row in rows if row.rejected is not None]
    scored = model.score([row.conversation(response) for row in pairs for response in row.responses])
    rewards = scored.reshape(-1, 2)
    graded = [(row, response) for row in rows for response in row.responses if response.gradings]
    given = model.grade([row.conversation(response) for row, response in graded]) if graded else []
    gradings: dict[str, list[tuple[str, str]]] = {}
    for (_, response), found in zip(graded, given, strict=True):
        for question, grade in response.gradings.items():
            gradings.setdefault(question, []).append((grade, found[question]))
    return report_of(rewards[:, 0], rewards[:, 1], [row.level or "" for row in pairs], gradings)


def report_of(
    chosen: Floats,
    rejected: Floats,
    levels: Sequence[str],
    gradings: Mapping[str, Sequence[tuple[str, str]]] | None = None,
) -> RewardReport:
    """chosen, rejected [n]: rewards. levels [n]. gradings: question -> (given, predicted) grades."""
    gaps = np.asarray(chosen, np.float64) - np.asarray(rejected, np.float64)
    finite = np.isfinite(gaps)
    right = np.where(gaps > 0, 1.0, np.where(gaps == 0, 0.5, 0.0))
    names = np.array(levels, dtype=object)
    by_level, gap = {}, {}
    for level in (*LEVELS, ""):
        of = finite & (names == level)
        if of.any():
            by_level[level] = _interval(right[of])
            gap[level] = float(gaps[of].mean())
    bins = calibration(gaps[finite])
    total = int(finite.sum())
    return RewardReport(
        total,
        _interval(right[finite]) if total else None,
        by_level,
        gap,
        bins,
        sum(one.pairs * abs(one.predicted - one.right) for one in bins) / total if total else None,
        {name: _graded(pairs) for name, pairs in (gradings or {}).items()},
        int((~finite).sum()),
        tuple(float(value) for value in np.where(finite, right, np.nan)),
    )


def calibration(gaps: Floats) -> tuple[CalibrationBin, ...]:
    """BINS equal parts of 0.5 .. 1 of what the model says, those without a pair left out."""
    said = 1 / (1 + np.exp(-np.abs(gaps)))
    place = np.minimum(((said - 0.5) * 2 * BINS).astype(int), BINS - 1)
    right = np.where(gaps > 0, 1.0, np.where(gaps == 0, 0.5, 0.0))
    return tuple(
        CalibrationBin(float(said[of].mean()), float(right[of].mean()), int(of.sum()))
        for of in (place == number for number in range(BINS))
        if of.any()
    )


def calibration_plot(report: RewardReport, title: str) -> str:
    """SVG: what the model says against how often it is right; on the line both are the same."""
    points = tuple((one.predicted, one.right) for one in report.calibration)
    hints = tuple(f"{one.pairs} pair{'s' if one.pairs > 1 else ''}" for one in report.calibration)
    return line_chart(
        title,
        "probability that the model gives its choice",
        "share in which it is right",
        [
            Line("measured", points, dots=True, hints=hints),
            Line("as it says", ((0.5, 0.5), (1.0, 1.0)), dashed=True),
        ],
    )


def best_of_n(
    rewards: Sequence[float], gold: Sequence[float] | None = None, sizes: Sequence[int] | None = None
) -> list[tuple[int, float]]:
    """(N, what the best of N responses is worth on average): the expectation over all subsets of N of the K
    responses of one prompt, in closed form. The pick has the highest of `rewards`; its worth is its `gold`
    (default: the reward itself). Rewards that are no number are never picked. PomonaError: nothing to pick.
    """
    value = np.asarray(rewards, np.float64)
    worth = value if gold is None else np.asarray(gold, np.float64)
    keep = np.isfinite(value)
    if not keep.any():
        raise PomonaError("best of N: no response has a reward that is a number")
    order = np.argsort(-value[keep], kind="stable")
    worth = worth[keep][order]
    count = len(worth)
    # The i-th best is the best of a subset if the other N - 1 are among the K - 1 - i that are worse.
    return [
        (n, sum(math.comb(count - 1 - i, n - 1) * worth[i] for i in range(count)) / math.comb(count, n))
        for n in (sizes or range(1, count + 1))
        if n <= count
    ]


def _interval(right: Floats) -> Interval:
    return bootstrap(_RIGHT, [(float(value), 1.0) for value in right])


def _graded(pairs: Sequence[tuple[str, str]]) -> tuple[Interval, float]:
    wanted = [given for given, _ in pairs]
    commonest = max(wanted.count(grade) for grade in set(wanted)) / len(wanted)
    return _interval(np.array([float(given == found) for given, found in pairs])), commonest
