"""Metrics of the tasks, each as counts that add up: a corpus's value is a function of the sum over its rows.

That makes the bootstrap cheap and honest: rows are drawn again with replacement, counts are summed, the value
is computed from the sums. Two systems on the same rows are compared on the same draws (Koehn 2004).

- `F_HALF`: F0.5 over edits (CoNLL-2014), edits as in edits.py.
- `GLEU`: of grammatical error correction (Napoles et al. 2015, the form of 2016 without tuning), one
  reference.
- `ROUGE_L`: F1 of the longest common subsequence of lower-case words (Lin 2004), without stemming.
- `field_metric`: F1 over (path, value) pairs of JSON; `mean`: of a number per row.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pomona.adapters.edits import word_edits, words
from pomona.errors import PomonaError

Floats = NDArray[np.float64]
DRAWS = 2000


@dataclass(frozen=True)
class Metric:
    """counts(prediction, example) -> numbers of one row, None where the row says nothing about this metric;
    combine([..., counts]) -> [...] values. Higher is better. `prediction` is None if an answer was
    unusable."""

    name: str
    counts: Callable[[Any, Any], Sequence[float] | None]
    combine: Callable[[Floats], Floats]


@dataclass(frozen=True)
class Interval:
    """A value with its bootstrap interval of 95%."""

    value: float
    low: float
    high: float
    rows: int


def bootstrap(metric: Metric, counts: Sequence[Sequence[float]], *, seed: int = 0) -> Interval:
    """The metric of rows with these counts. PomonaError if there are none."""
    table = _table(metric, counts)
    draws = metric.combine(_draws(len(table), seed) @ table)
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(float(metric.combine(table.sum(0))), float(low), float(high), len(table))


def paired_bootstrap(
    metric: Metric, ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], *, seed: int = 0
) -> Interval:
    """The difference ours - theirs on the same rows; an interval without 0 in it is a difference."""
    a, b = _table(metric, ours), _table(metric, theirs)
    if len(a) != len(b):
        raise PomonaError(f"{metric.name}: {len(a)} and {len(b)} rows cannot be paired; use the same rows")
    draws = _draws(len(a), seed)
    low, high = np.percentile(metric.combine(draws @ a) - metric.combine(draws @ b), [2.5, 97.5])
    value = metric.combine(a.sum(0)) - metric.combine(b.sum(0))
    return Interval(float(value), float(low), float(high), len(a))


def _table(metric: Metric, counts: Sequence[Sequence[float]]) -> Floats:
    if not counts:
        raise PomonaError(f"{metric.name}: no rows to measure on; give some")
    return np.asarray(counts, np.float64)


def _draws(rows: int, seed: int) -> Floats:
    """[draws, rows]: how often each row is drawn."""
    return np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), DRAWS).astype(np.float64)


def mean(name: str, value: Callable[[Any, Any], float | None]) -> Metric:
    """The mean of value(prediction, example) over the rows where it is not None."""

    def counts(prediction: Any, example: Any) -> tuple[float, float] | None:
        found = value(prediction, example)
        return None if found is None else (float(found), 1.0)

    return Metric(name, counts, lambda sums: sums[..., 0] / sums[..., 1])


def f_beta(sums: Floats, beta: float) -> Floats:
    """[..., (true positives, predicted, wanted)] -> F; 1 where nothing was wanted and nothing predicted."""
    hits, predicted, wanted = sums[..., 0], sums[..., 1], sums[..., 2]
    below = predicted + beta * beta * wanted
    return np.where(below > 0, (1 + beta * beta) * hits / np.where(below > 0, below, 1), 1.0)


# --- corrections: prediction and reference are texts, the source is the example's content


def edit_counts(source: str, prediction: str, reference: str) -> tuple[float, float, float]:
    """Edits that both make, edits of the prediction, edits of the reference."""
    tokens = words(source)
    made, wanted = word_edits(tokens, words(prediction)), word_edits(tokens, words(reference))
    return float(len(made & wanted)), float(len(made)), float(len(wanted))


def gleu_counts(source: str, prediction: str, reference: str) -> tuple[float, ...]:
    """Matches and totals of n-grams for n = 1 .. 4, then words of prediction and reference."""
    s, h, r = words(source), words(prediction), words(reference)
    numbers: list[float] = []
    for n in range(1, 5):
        in_s, in_h, in_r = (_ngrams(tokens, n) for tokens in (s, h, r))
        kept = sum((in_h & in_r).values())
        # What should have been changed and was not: it is in source and prediction more often than it should.
        missed = sum(max(0, min(count, in_s[gram]) - min(count, in_r[gram])) for gram, count in in_h.items())
        numbers += [float(max(kept - missed, 0)), float(max(len(h) - n + 1, 0))]
    return (*numbers, float(len(h)), float(len(r)))


def gleu(sums: Floats) -> Floats:
    """Geometric mean of the four precisions times the brevity penalty; n without any n-gram is left out."""
    hits, totals = sums[..., 0:8:2], sums[..., 1:8:2]
    h, r = sums[..., 8], sums[..., 9]
    there = totals > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(there, np.log(hits / np.where(there, totals, 1)), 0.0)
        value = np.exp(logs.sum(-1) / np.maximum(there.sum(-1), 1))
        brevity = np.where(h >= r, 1.0, np.exp(1.0 - r / np.where(h > 0, h, 1)))
    return np.where(h > 0, value * brevity, 0.0)


def _ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


F_HALF = Metric(
    "f0.5",
    lambda text, example: edit_counts(example.request.content, text or "", example.answer),
    lambda sums: f_beta(sums, 0.5),
)
GLEU = Metric(
    "gleu", lambda text, example: gleu_counts(example.request.content, text or "", example.answer), gleu
)


# --- texts: summaries, rewritten texts


def rouge_l(prediction: str, reference: str) -> float:
    """F1 of the longest common subsequence of words, 0 .. 1."""
    a, b = (re.findall(r"[a-z0-9]+", text.lower()) for text in (prediction, reference))
    if not a or not b:
        return 0.0
    row = [0] * (len(b) + 1)
    for token in a:
        diagonal = 0
        for j, other in enumerate(b, 1):
            diagonal, row[j] = row[j], diagonal + 1 if token == other else max(row[j], row[j - 1])
    return 2 * row[-1] / (len(a) + len(b))


ROUGE_L = mean(
    "rouge_l", lambda text, example: rouge_l(text or "", example.answer) if example.answer else None
)


# --- JSON


def flat(value: Any, path: str = "") -> Counter[tuple[str, str]]:
    """{(path, value)}: lists have no order; texts are compared without case and runs of white space."""
    pairs: Counter[tuple[str, str]] = Counter()
    if isinstance(value, dict):
        for key, item in value.items():
            pairs += flat(item, f"{path}.{key}")
    elif isinstance(value, list):
        for item in value:
            pairs += flat(item, f"{path}[]")
    elif value is not None and value != "":
        pairs[path, plain(value)] += 1
    return pairs


def plain(value: Any) -> str:
    """A leaf as it is compared: 3 and 3.0 are equal, True and "true" are not."""
    if isinstance(value, str):
        return " ".join(value.casefold().split()).strip(" .,;:")
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return repr(int(value))
    return repr(value)


def field_counts(prediction: Any, reference: Any) -> tuple[float, float, float]:
    made, wanted = flat(prediction), flat(reference)
    return float((made & wanted).total()), float(made.total()), float(wanted.total())


def field_metric(name: str, reference: Callable[[Any], Any]) -> Metric:
    """Micro-averaged F1 over the fields; `reference(example)` is the right value."""
    return Metric(
        name,
        lambda value, example: field_counts({} if value is None else value, reference(example)),
        lambda sums: f_beta(sums, 1.0),
    )


def exact(name: str, reference: Callable[[Any], Any]) -> Metric:
    return mean(name, lambda value, example: float(flat(value) == flat(reference(example))))
