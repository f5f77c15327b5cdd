"""Log-likelihoods of continuations, for multiple choice: what contexts have in common is computed once.

    scorer = Continuations(engine)
    [Likelihood(log_p, greedy), ...] = scorer.score([(context_ids, continuation_ids), ...])

Contexts are taken in the order of their tokens, a block at a time. What a block has in common (the worked
examples of a few-shot prompt) goes into the engine's prefix cache first, then each context, then all
continuations in batches. Continuations of one token are all read off the end of their context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pomona.errors import PomonaError
from pomona.runtime.adapters import LoadedAdapter
from pomona.runtime.engine import BATCH_TOKENS, Engine, StepInput
from pomona.runtime.engine import Sequence as EngineSequence

Pair = tuple[Sequence[int], Sequence[int]]
Ids = tuple[int, ...]
OnPair = Callable[[int, int], None]

BLOCK = 32  # contexts that are worked on at a time; their pages have to fit the cache together
TOGETHER = 64  # sequences in one step
WORTH_SHARING = 24  # new tokens of a context with several continuations, from which it is computed once


@dataclass(frozen=True)
class Likelihood:
    """log_p: natural logarithm, summed over the continuation. greedy: each of its tokens is the likeliest."""

    log_p: float
    greedy: bool


@dataclass(frozen=True)
class _Item:
    """One sequence of a batch. answers: (index of a pair, its continuation); several only if each is one
    token."""

    context: Ids
    answers: tuple[tuple[int, Ids], ...] = ()

    @property
    def drafts(self) -> Ids:
        return self.answers[0][1][:-1] if self.answers else ()

    @property
    def targets(self) -> list[tuple[int, int]]:
        if len(self.answers) == 1:
            return list(enumerate(self.answers[0][1]))
        return [(0, more[0]) for _, more in self.answers]


class Continuations:
    """Scores pairs on one engine. Results do not depend on order or company."""

    def __init__(self, engine: Engine, adapter: LoadedAdapter | None = None) -> None:
        self._engine = engine
        self._adapter = adapter
        self.computed_tokens = 0  # that went through the model so far

    def score(self, pairs: Sequence[Pair], on_pair: OnPair | None = None) -> list[Likelihood]:
        """In the order of `pairs`. on_pair(done, total) after each block.

        PomonaError for an empty context or continuation, or a pair that is longer than the context window
        (`fit` cuts one).
        """
        answers: dict[Ids, list[tuple[int, Ids]]] = {}
        for index, (context, continuation) in enumerate(pairs):
            if not len(context) or not len(continuation):
                raise PomonaError(
                    "a pair without context or without continuation; give at least a token of each"
                )
            answers.setdefault(tuple(context), []).append((index, tuple(continuation)))
        contexts = sorted(answers)
        results: dict[int, Likelihood] = {}
        for start in range(0, len(contexts), BLOCK):
            block = {context: answers[context] for context in contexts[start : start + BLOCK]}
            self._block(block, results)
            if on_pair is not None:
                on_pair(len(results), len(pairs))
        return [results[index] for index in range(len(pairs))]

    def _block(self, block: dict[Ids, list[tuple[int, Ids]]], results: dict[int, Likelihood]) -> None:
        contexts = list(block)
        stem = contexts[0][: common_length(contexts[0], contexts[-1])]
        if len(contexts) > 1 and len(stem) >= WORTH_SHARING:
            self._run([_Item(stem)], results)
        several = [c for c, answers in block.items() if sum(len(more) > 1 for _, more in answers) > 1]
        self._run([_Item(c) for c in several if len(c) - len(stem) >= WORTH_SHARING], results)
        items = []
        for context, answers in block.items():
            if single := tuple(answer for answer in answers if len(answer[1]) == 1):
                items.append(_Item(context, single))
            items += [_Item(context, (answer,)) for answer in answers if len(answer[1]) > 1]
        self._run(items, results)

    def _run(self, items: Sequence[_Item], results: dict[int, Likelihood]) -> None:
        """Items in batches; each brings what the prefix cache does not have of it."""
        batch: list[tuple[_Item, StepInput]] = []
        try:
            for item in items:
                sequence = self._engine.new_sequence(self._adapter)
                rest = self._begin(sequence, item)
                rows = sum(len(one.tokens) + len(one.drafts) for _, one in batch)
                if len(batch) == TOGETHER or rows + len(rest) + len(item.drafts) > BATCH_TOKENS:
                    self._flush(batch, results)
                batch.append((item, StepInput(sequence, rest, drafts=item.drafts)))
            self._flush(batch, results)
        finally:
            for _, one in batch:
                one.sequence.close()

    def _begin(self, sequence: EngineSequence, item: _Item) -> Ids:
        """What is left of the context, few enough for a batch together with the continuation."""
        try:
            known = self._engine.reuse(sequence, item.context)
            room = BATCH_TOKENS - len(item.drafts)
            if room < 1:
                raise PomonaError(
                    f"a continuation of {len(item.drafts) + 1:,} tokens; at most {BATCH_TOKENS} can be scored"
                )
            while len(item.context) - known > room:
                part = item.context[known : known + min(BATCH_TOKENS, len(item.context) - known - 1)]
                self._engine.score_places([StepInput(sequence, part)], [[]])
                self.computed_tokens += len(part)
                known += len(part)
        except BaseException:
            sequence.close()
            raise
        return item.context[known:]

    def _flush(self, batch: list[tuple[_Item, StepInput]], results: dict[int, Likelihood]) -> None:
        if not batch:
            return
        inputs = [one for _, one in batch]
        scored = self._engine.score_places(inputs, [item.targets for item, _ in batch])
        self.computed_tokens += sum(len(one.tokens) + len(one.drafts) for one in inputs)
        for (item, one), values in zip(batch, scored, strict=True):
            one.sequence.close()
            if len(item.answers) == 1:
                log_p = float(np.sum([value for value, _ in values], dtype=np.float64))
                results[item.answers[0][0]] = Likelihood(log_p, all(likeliest for _, likeliest in values))
            else:
                for (index, _), (log_p, likeliest) in zip(item.answers, values, strict=True):
                    results[index] = Likelihood(log_p, likeliest)
        batch.clear()


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
