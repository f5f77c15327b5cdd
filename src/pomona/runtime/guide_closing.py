"""A short way to a complete answer, found by a few simple habits.

llguidance says what may come next, not how far the end is. So a copy of its state is walked: what is forced
is taken, else the first token of one byte that may come, in an order that closes (} ] " first, { [ last;
where both " and a comma may come, we are inside of a text). Where that does not end, because a pattern wants
something else, texts that match the patterns and other orders are tried. A way that is found is an upper
bound and a plan; that none is found proves nothing.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import llguidance

_CLOSING, _OPENING = b'}]",:', b"[{"
SHUFFLES, SHUFFLED_TOKENS = 4, 256
MOST_ENDS = 1000


class Closing:
    """Finds endings for one tokenizer."""

    def __init__(self, tokenizer: llguidance.LLTokenizer) -> None:
        tokens: dict[int, int] = {}
        for token in range(tokenizer.vocab_size):
            text = tokenizer.decode_bytes([token])
            if len(text) == 1 and not tokenizer.is_special_token(token):
                tokens.setdefault(text[0], token)
        self._tokens = tokens
        ends = _CLOSING + _OPENING
        middle = sorted((byte for byte in tokens if byte not in ends), key=lambda byte: (byte > 127, byte))
        self._end_of_text = [tokens[byte] for byte in b'",' if byte in tokens]
        self._first = [tokens[byte] for byte in _CLOSING if byte in tokens]
        self._middle = [tokens[byte] for byte in middle]
        self._last = [tokens[byte] for byte in _OPENING if byte in tokens]

    def example(self, text: str) -> list[int]:
        """A text as JSON's strings have it, in tokens of one byte, and the quote behind it."""
        written = json.dumps(text, ensure_ascii=False)[1:].encode("utf-8", "replace")
        return [self._tokens[byte] for byte in written] if self._tokens.keys() >= set(written) else []

    def plan(
        self, matcher: llguidance.LLMatcher, limit: int, examples: Sequence[Sequence[int]] = ()
    ) -> list[int] | None:
        """At most `limit` tokens after which the answer is complete, or None when the habits find none.

        examples: texts in which a string may end, for the patterns that no habit meets.
        """
        for orders, ends, room in self._attempts(examples, limit):
            if (plan := self._walk(matcher.deep_copy(), orders, ends, room)) is not None:
                return plan
        return None

    def _attempts(
        self, examples: Sequence[Sequence[int]], limit: int
    ) -> Iterator[tuple[Iterator[Sequence[int]], Sequence[Sequence[int]], int]]:
        """An endless series of preferences for each attempt, examples, and how far it may go."""
        usual = [*self._first, *self._middle, *self._last]
        ends = [example[at:] for example in examples for at in range(len(example))][:MOST_ENDS]
        yield itertools.repeat(usual), (), limit
        if ends:
            yield itertools.repeat(usual), ends, limit
        yield itertools.repeat([*self._first, *reversed(self._middle), *self._last]), ends, limit
        for seed in range(SHUFFLES):
            yield self._shuffled(seed), ends if seed % 2 else (), min(limit, SHUFFLED_TOKENS)

    def _shuffled(self, seed: int) -> Iterator[Sequence[int]]:
        generator, order = random.Random(seed), list(self._middle)
        while True:
            generator.shuffle(order)
            yield [*self._first, *order, *self._last]

    def _within_text(self, matcher: llguidance.LLMatcher) -> bool:
        return all(matcher.validate_tokens([token]) == 1 for token in self._end_of_text)

    def _walk(
        self,
        matcher: llguidance.LLMatcher,
        orders: Iterator[Sequence[int]],
        ends: Sequence[Sequence[int]],
        limit: int,
    ) -> list[int] | None:
        plan: list[int] = []
        while not matcher.is_accepting():
            if len(plan) >= limit or matcher.is_error():
                return None
            step: Sequence[int] = matcher.compute_ff_tokens()
            if not step:
                if self._within_text(matcher):
                    step = self._end_of_text[:1]
                else:
                    step = next((end for end in ends if matcher.validate_tokens(list(end)) == len(end)), ())
            if not step:
                allowed = (token for token in next(orders) if matcher.validate_tokens([token]) == 1)
                step = list(itertools.islice(allowed, 1))
            if not step or not matcher.consume_tokens(list(step)):
                return None
            plan += step
        return plan if len(plan) <= limit else None
