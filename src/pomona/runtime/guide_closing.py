"""A short way to a complete answer, found by a few simple habits.

llguidance says what may come next, not how far the end is. So a copy of its state is walked: what is forced is
taken, else the first token of one byte that may come, in an order that closes (} ] " first, { [ last; where
both " and a comma may come, we are inside of a text). Where that does not end, because a pattern wants something
else, other orders are tried. A way that is found is an
upper bound and a plan; that none is found proves nothing.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import llguidance

_CLOSING, _OPENING = b'}]",:', b"[{"
_SHUFFLES = 6


class Closing:
    """Finds endings for one tokenizer."""

    def __init__(self, tokenizer: llguidance.LLTokenizer) -> None:
        tokens: dict[int, int] = {}
        for token in range(tokenizer.vocab_size):
            text = tokenizer.decode_bytes([token])
            if len(text) == 1 and not tokenizer.is_special_token(token):
                tokens.setdefault(text[0], token)
        ends = _CLOSING + _OPENING
        middle = sorted((byte for byte in tokens if byte not in ends), key=lambda byte: (byte > 127, byte))
        self._end_of_text = [tokens[byte] for byte in b'",' if byte in tokens]
        self._first = [tokens[byte] for byte in _CLOSING if byte in tokens]
        self._middle = [tokens[byte] for byte in middle]
        self._last = [tokens[byte] for byte in _OPENING if byte in tokens]

    def plan(self, matcher: llguidance.LLMatcher, limit: int) -> list[int] | None:
        """At most `limit` tokens after which the answer is complete, or None when the habits find none."""
        for orders in self._orders():
            if (plan := self._walk(matcher.deep_copy(), orders, limit)) is not None:
                return plan
        return None

    def _orders(self) -> Iterator[Iterator[Sequence[int]]]:
        """One endless series of preferences for each attempt."""

        def always(order: Sequence[int]) -> Iterator[Sequence[int]]:
            while True:
                yield order

        def shuffled(seed: int) -> Iterator[Sequence[int]]:
            generator, order = random.Random(seed), list(self._middle)
            while True:
                generator.shuffle(order)
                yield [*self._first, *order, *self._last]

        yield always([*self._first, *self._middle, *self._last])
        yield always([*self._first, *reversed(self._middle), *self._last])
        for seed in range(_SHUFFLES):
            yield shuffled(seed)

    def _within_text(self, matcher: llguidance.LLMatcher) -> bool:
        return all(matcher.validate_tokens([token]) == 1 for token in self._end_of_text)

    def _walk(
        self, matcher: llguidance.LLMatcher, orders: Iterator[Sequence[int]], limit: int
    ) -> list[int] | None:
        plan: list[int] = []
        while not matcher.is_accepting():
            if len(plan) >= limit or matcher.is_error():
                return None
            step = matcher.compute_ff_tokens()
            if not step:
                order = self._end_of_text if self._within_text(matcher) else next(orders)
                allowed = (token for token in order if matcher.validate_tokens([token]) == 1)
                step = list(itertools.islice(allowed, 1))
            if not step or not matcher.consume_tokens(step):
                return None
            plan += step
        return plan if len(plan) <= limit else None
