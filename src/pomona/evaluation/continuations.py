"""Log-likelihoods of continuations, for multiple choice: what contexts have in common is computed once.

    with Continuations(engine) as scorer:
        [(log_p, greedy), ...] = scorer.score([(context_ids, continuation_ids), ...])

Pairs are taken in the order of their tokens, so that neighbours share the longest beginnings: the worked
examples of a few-shot prompt are read once for a whole task, a question once for all its answers. One
sequence of the engine is cut back to what the next pair shares and goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from pomona.errors import PomonaError
from pomona.runtime.adapters import LoadedAdapter
from pomona.runtime.engine import BATCH_TOKENS, Engine

Pair = tuple[Sequence[int], Sequence[int]]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Likelihood:
    """log_p: natural logarithm, summed over the continuation. greedy: each of its tokens is the likeliest."""

    log_p: float
    greedy: bool


class Continuations:
    """Scores pairs on one engine, one after the other. A context manager; close() frees its sequence."""

    def __init__(self, engine: Engine, adapter: LoadedAdapter | None = None) -> None:
        self._engine = engine
        self._sequence = engine.new_sequence(adapter)
        self._ids: list[int] = []  # in the sequence
        self._context: list[int] = []  # of the last pair, and [V] what the model says after it:
        self._last: Floats = np.zeros(0, np.float32)
        self.computed_tokens = 0  # that went through the model so far

    def score(
        self, pairs: Sequence[Pair], on_pair: Callable[[int, int], None] | None = None
    ) -> list[Likelihood]:
        """In the order of `pairs`. on_pair(done, total) after each.

        PomonaError for an empty context or continuation, or a pair that is longer than the context window
        (`fit` cuts one).
        """
        for context, continuation in pairs:
            if not len(context) or not len(continuation):
                raise PomonaError(
                    "a pair without context or without continuation; give at least a token of each"
                )
        results: list[Likelihood | None] = [None] * len(pairs)
        order = sorted(range(len(pairs)), key=lambda i: (list(pairs[i][0]), list(pairs[i][1])))
        for done, index in enumerate(order):
            results[index] = self._one(list(pairs[index][0]), list(pairs[index][1]))
            if on_pair is not None:
                on_pair(done + 1, len(pairs))
        return [result for result in results if result is not None]

    def _one(self, context: list[int], continuation: list[int]) -> Likelihood:
        rows = [self._after(context)]
        if len(continuation) > 1:
            rows += [*self._read(continuation[:-1])]
        log_p, greedy = 0.0, True
        for row, token in zip(rows, continuation, strict=True):
            log_p += float(row[token]) - log_sum_exp(row)
            greedy = greedy and int(row.argmax()) == token
        return Likelihood(log_p, greedy)

    def _after(self, context: list[int]) -> Floats:
        """[V]: logits after `context`, which is what the sequence holds then."""
        if context == self._context:
            self._cut(len(context))
            return self._last
        self._context = []
        self._cut(min(common_length(self._ids, context), len(context) - 1))
        while (missing := len(context) - 1 - len(self._ids)) > 0:
            part = np.asarray(context[len(self._ids) :][: min(missing, BATCH_TOKENS)], np.int32)
            unwanted = np.full(len(part), -1, np.int32)  # no logits of these
            self._engine._call(self._engine.native.score, self._sequence.handle, part, unwanted)
            self._note(part.tolist())
        [self._last] = self._read(context[-1:])
        self._context = context
        return self._last

    def _read(self, tokens: Sequence[int]) -> Floats:
        """[T, V]: logits after each of the tokens, which are appended."""
        out = np.empty((len(tokens), self._engine.config.vocab_size), np.float32)
        for start in range(0, len(tokens), BATCH_TOKENS):
            part = np.asarray(tokens[start : start + BATCH_TOKENS], np.int32)
            self._engine._call(
                self._engine.native.logits, self._sequence.handle, part, out[start : start + len(part)]
            )
            self._note(part.tolist())
        return out

    def _note(self, tokens: list[int]) -> None:
        self._ids += tokens
        self.computed_tokens += len(tokens)

    def _cut(self, length: int) -> None:
        self._sequence.truncate(length)
        del self._ids[length:]

    def close(self) -> None:
        self._sequence.close()

    def __enter__(self) -> Continuations:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def fit(context: Sequence[int], continuation: Sequence[int], limit: int) -> tuple[list[int], list[int]]:
    """The pair without the beginning of its context that a window of `limit` tokens has no room for.

    As in lm-eval: the last token is foretold and not read, so `limit` + 1 tokens fit. PomonaError for a
    continuation that leaves no room for context.
    """
    room = limit + 1 - len(continuation)
    if room < 1:
        raise PomonaError(
            f"a continuation of {len(continuation):,} tokens does not fit a context of {limit:,}"
        )
    return list(context)[-room:], list(continuation)


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Of the beginning that both have in common."""
    length = min(len(a), len(b))
    differ = np.flatnonzero(np.asarray(a[:length]) != np.asarray(b[:length]))
    return int(differ[0]) if differ.size else length


def log_sum_exp(row: Floats) -> float:
    """In float64: 49,152 float32 terms lose digits otherwise."""
    high = float(row.max())
    return high + float(np.log(np.exp(row.astype(np.float64) - high).sum()))
