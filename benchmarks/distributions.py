"""How far one model's next-token distributions lie from those of another; the sums behind a quality table.

The reference's log-probabilities of some windows lie in one file, float32, and every contender (ours in this
process, llama.cpp in its own) brings the logits of the same windows. Only numpy is needed, and nothing of
pomona: the peer's process imports this file too.

Shape letters: T scored tokens of a window, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 16  # rows at a time: a few MB of temporaries, which stay in the cache


@dataclass(frozen=True)
class Sums:
    """Over the scored tokens of some text, in nats: `nll` of -log q(token), `kl` of KL(reference || q).
    `same` counts the tokens where both think the same token likeliest."""

    tokens: int = 0
    nll: float = 0.0
    kl: float = 0.0
    same: int = 0

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.tokens + other.tokens, self.nll + other.nll, self.kl + other.kl, self.same + other.same
        )

    @property
    def perplexity(self) -> float:
        mean = self.nll / self.tokens
        return math.exp(mean) if mean < 700 else math.inf

    @property
    def mean_kl(self) -> float:
        return self.kl / self.tokens

    @property
    def same_top(self) -> float:
        return self.same / self.tokens

    def to_json(self) -> list[float]:
        return [self.tokens, self.nll, self.kl, self.same]

    @staticmethod
    def from_json(value: Sequence[float]) -> Sums:
        tokens, nll, kl, same = value
        return Sums(int(tokens), float(nll), float(kl), int(same))


def total(parts: Iterable[Sums]) -> Sums:
    return sum(parts, Sums())


def log_softmax(logits_TV: NDArray[np.float32], out_TV: NDArray[np.float32]) -> None:
    """Log-probabilities of every row, into `out_TV`, which may be a file mapping."""
    for start in range(0, len(logits_TV), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        out_TV[rows] = _log_softmax(logits_TV[rows])


def compare(
    logits_TV: NDArray[np.float32], reference_TV: NDArray[np.float32], targets_T: Sequence[int]
) -> Sums:
    """Sums of one window. reference_TV: log-probabilities; targets_T: the token that follows each."""
    if logits_TV.shape != reference_TV.shape or len(targets_T) != len(logits_TV):
        raise ValueError(
            f"logits {logits_TV.shape}, reference {reference_TV.shape}, {len(targets_T)} targets"
        )
    targets = np.asarray(targets_T, np.intp)
    nll = kl = 0.0
    same = 0
    for start in range(0, len(logits_TV), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        reference = reference_TV[rows]
        q = _log_softmax(logits_TV[rows])
        nll -= float(q[np.arange(len(q)), targets[rows]].sum(dtype=np.float64))
        same += int((q.argmax(axis=1) == reference.argmax(axis=1)).sum())
        # The difference first: where the two agree the sum is of small numbers, and small numbers are right.
        kl += float(np.einsum("tv,tv->t", np.exp(reference), reference - q).sum(dtype=np.float64))
    return Sums(len(logits_TV), nll, kl, same)


def own_sums(reference_TV: NDArray[np.float32], targets_T: Sequence[int]) -> Sums:
    """Sums of the reference itself: no divergence, and its own top tokens."""
    rows = np.arange(len(reference_TV))
    nll = -float(reference_TV[rows, np.asarray(targets_T, np.intp)].sum(dtype=np.float64))
    return Sums(len(reference_TV), nll, 0.0, len(reference_TV))


def log_likelihood(logits_TV: NDArray[np.float32], targets_T: Sequence[int]) -> float:
    """Sum of log q(target), natural logarithm."""
    q = _log_softmax(np.asarray(logits_TV))
    return float(q[np.arange(len(q)), np.asarray(targets_T, np.intp)].sum(dtype=np.float64))


def _log_softmax(logits_TV: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted: NDArray[np.float32] = logits_TV - logits_TV.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


class ReferenceFile:
    """Log-probabilities of the windows of one chunk, one below the other: [sum of T, V] float32 in a file.

    Written by the one who makes it (`create`), mapped read-only by everybody else (`open`).
    """

    def __init__(self, path: Path, lengths: Sequence[int], vocabulary: int, mapping: NDArray[Any]) -> None:
        self.path, self.lengths, self.vocabulary = path, tuple(lengths), vocabulary
        self._mapping = mapping
        self._starts = [0, *np.cumsum(self.lengths).tolist()]

    @classmethod
    def create(cls, path: Path, lengths: Sequence[int], vocabulary: int) -> ReferenceFile:
        shape = (sum(lengths), vocabulary)
        return cls(path, lengths, vocabulary, np.memmap(path, np.float32, "w+", shape=shape))

    @classmethod
    def open(cls, path: Path, lengths: Sequence[int], vocabulary: int) -> ReferenceFile:
        shape = (sum(lengths), vocabulary)
        return cls(path, lengths, vocabulary, np.memmap(path, np.float32, "r", shape=shape))

    def window(self, index: int) -> NDArray[np.float32]:
        """[T, V]; a view of the file."""
        view: NDArray[np.float32] = self._mapping[self._starts[index] : self._starts[index + 1]]
        return view

    def to_json(self) -> dict[str, Any]:
        """What `open` needs in another process."""
        return {"path": str(self.path), "lengths": list(self.lengths), "vocabulary": self.vocabulary}
